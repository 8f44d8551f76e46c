import { pageBase, streamAddress } from "./address.js";
import { LiveSubscription } from "./subscription.js";
import type { Row, StreamQuery, SubscribeOptions, Subscription } from "./types.js";

export { keyOf } from "./rows.js";
export { TransactionTimeoutError } from "./transactions.js";
export type * from "./types.js";

/**
 * Follow tables: the maps hold their rows, listeners get what changes.
 *
 * `url` is what comes before `/changes`; by default `/v1` of the page's own origin.
 */
export function subscribe<R extends object = Row>(options: SubscribeOptions<R>): Subscription<R> {
  return new LiveSubscription<R>(options, pageBase);
}

/** Address of the stream that `query` asks for, without position, snapshot and ticket. */
export function changesUrl<R extends object = Row>(query: StreamQuery<R>): string {
  return streamAddress(query, pageBase);
}
