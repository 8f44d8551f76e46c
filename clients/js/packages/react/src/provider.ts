"use client";

import { createContext, createElement, type ReactNode, useContext, useState } from "react";

import type { Connection, SubscribeOptions } from "@rowsignal/client";

import { Registry } from "./registry.js";

/** What all hooks below a provider use unless they say something else. */
export interface Defaults extends Connection, Pick<SubscribeOptions, "share"> {
  /** What comes before `/changes`; by default `/v1` of the page's own origin. */
  url?: string | URL;
}

interface Surroundings {
  registry: Registry;
  defaults: Defaults;
}

const Context = createContext<Surroundings>({ registry: new Registry(), defaults: {} });

export interface RowsignalProviderProps extends Defaults {
  children?: ReactNode;
}

/** Set the address and the credentials once; hooks below it share their subscriptions. */
export function RowsignalProvider({ children, ...defaults }: RowsignalProviderProps): ReactNode {
  const [registry] = useState(() => new Registry());
  return createElement(Context.Provider, { value: { registry, defaults } }, children);
}

export function useSurroundings(): Surroundings {
  return useContext(Context);
}
