import { type Source, openFetch } from "./sources.js";
import type { Frame } from "./frames.js";
import type { Connection } from "./types.js";

const TIMEOUT = 5000;

/** How far a stream has come, and whose changes were on the way. */
export interface Passed {
  position: string;
  transactions: Set<string>;
}

/**
 * Open a stream at an address that says after which position, and close it as soon as it has come
 * to the present; null when it cannot say. What it has not shown by then is not in sight.
 */
export function probe(address: string, connection: Connection, signal: AbortSignal): Promise<Passed | null> {
  return new Promise((resolve) => {
    const transactions = new Set<string>();
    let source: Source | null = null;
    const finish = (passed: Passed | null) => {
      clearTimeout(timer);
      source?.close();
      resolve(passed);
    };
    const timer = setTimeout(() => finish(null), TIMEOUT);
    signal.addEventListener("abort", () => finish(null));
    const frame = ({ type, data, id }: Frame) => {
      const transaction = transactionOf(data);
      if (transaction) transactions.add(transaction);
      else if (type === "heartbeat" && id) finish({ position: id, transactions });
      else if (type === "reset" || type === "bye") finish(null);
    };
    const ignore = () => undefined;
    source = openFetch(address, connection, { opened: ignore, alive: ignore, frame, failed: () => finish(null) });
  });
}

function transactionOf(data: string): string | null {
  const { transaction_id: id = null } = JSON.parse(data) as { transaction_id?: string | null };
  return id;
}
