"use client";

import { useCallback, useEffect, useMemo, useRef, useSyncExternalStore } from "react";

import type { Connection, KeyValue, Row, SubscribeOptions, Subscription, State } from "@rowsignal/client";

import { useSurroundings } from "./provider.js";
import { BEFORE, keyFor, type Rows } from "./registry.js";

type Wanted<R extends object> = Omit<
  SubscribeOptions<R>,
  "tables" | "onChange" | "onSnapshot" | "onReset" | "onState"
>;

export interface UseRowsOptions<R extends object = Row> extends Wanted<R> {
  /** Rows to show until the first ones arrive: those that the server has rendered. */
  initialRows?: readonly R[];
}

export interface UseRowOptions<R extends object = Row> extends Omit<Wanted<R>, "pk"> {
  initialRow?: R;
}

/** One row, as components see it. */
export interface OneRow<R extends object = Row> {
  /** Undefined while it is not known, and when there is none (then `isReady` is true). */
  readonly row: R | undefined;
  readonly state: State;
  readonly isReady: boolean;
  readonly subscription: Subscription<R> | null;
}

/**
 * The rows of a table, current as long as the component is shown.
 *
 * Components that ask for the same share a subscription. A table of null asks for nothing.
 */
export function useRows<R extends object = Row>(
  table: string | null,
  { initialRows, ...wanted }: UseRowsOptions<R> = {},
): Rows<R> {
  const { registry, defaults } = useSurroundings();
  const options = { ...defaults, ...wanted, tables: table ?? "" } as SubscribeOptions;
  const key = table === null ? null : keyFor(options);
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  const listen = useCallback(
    (listener: () => void) =>
      key === null ? nothing : registry.listen(key, callingLatest(latest), listener),
    [registry, key],
  );
  const read = () => (key === null ? BEFORE : registry.read(key));
  const seen = useSyncExternalStore(listen, read, () => BEFORE) as Rows<R>;
  return useMemo(
    () => (seen.isReady || !initialRows ? seen : { ...seen, rows: initialRows }),
    [seen, initialRows],
  );
}

/** One row by its primary key; of several columns as an array. No key asks for nothing. */
export function useRow<R extends object = Row>(
  table: string,
  key: KeyValue | readonly KeyValue[] | null | undefined,
  { initialRow, ...wanted }: UseRowOptions<R> = {},
): OneRow<R> {
  const isAsking = key !== null && key !== undefined;
  const pk = isAsking ? { pk: [key] } : undefined;
  const options = { ...wanted, ...pk } as UseRowsOptions<R>;
  const { rows, state, isReady, subscription } = useRows<R>(isAsking ? table : null, options);
  const row = isReady ? rows[0] : initialRow;
  return useMemo(() => ({ row, state, isReady, subscription }), [row, state, isReady, subscription]);
}

const nothing = () => undefined;

// A subscription outlives the render that began it: it asks the functions of the latest one.
function callingLatest(latest: { current: SubscribeOptions }): SubscribeOptions {
  const options: Record<string, unknown> = { ...latest.current };
  for (const name of ["token", "headers", "ticket"] satisfies (keyof Connection)[]) {
    if (typeof options[name] !== "function") continue;
    options[name] = (request: never) => {
      const current = latest.current[name];
      return typeof current === "function" ? current(request) : current;
    };
  }
  return options as unknown as SubscribeOptions;
}
