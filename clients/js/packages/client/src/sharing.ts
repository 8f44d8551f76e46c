import { isPage } from "./environment.js";
import type { Message } from "./stream.js";
import { type SharedState, Tabs, type TabsHandlers } from "./tabs.js";
import type { State, SubscribeOptions } from "./types.js";

type Sharing = Pick<SubscribeOptions, "ticket" | "token" | "headers" | "after" | "snapshot" | "share">;

/** The name under which tabs share one connection; null where each has its own. */
export function groupOf(options: Sharing, address: string): string | null {
  const { ticket, token, headers, after, snapshot = true } = options;
  const share = options.share ?? (isPage() && !(ticket || token || headers));
  // A subscription that brings a position stands elsewhere than the other tabs.
  if (!share || after) return null;
  return `rowsignal ${share === true ? "" : share} ${snapshot} ${address}`;
}

/** Tabs of that name, or null where they cannot be: no BroadcastChannel or locks, or not here. */
export function joined(name: string, handlers: TabsHandlers): Tabs | null {
  try {
    return new Tabs(name, handlers);
  } catch {
    return null;
  }
}

/** What the leading tab passes on of one message; a snapshot goes as a whole, at its end. */
export function passOn(tabs: Tabs | null, message: Message): void {
  if (message.type === "snapshot-end") tabs?.renew();
  else if (message.type !== "snapshot") tabs?.forward(message);
}

/** What other tabs need of a state. */
export function newsOf({ status, reason, retryAt }: State): SharedState["news"] {
  return { status, reason, retryAt };
}
