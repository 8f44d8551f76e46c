import { keyOf, type Change } from "@rowsignal/client";
import type { SyncConfig } from "@tanstack/db";

/** What a collection gives to write its rows with. */
export type Writes<T extends object, K extends string | number> = Pick<
  Parameters<SyncConfig<T, K>["sync"]>[0],
  "begin" | "write" | "commit" | "truncate" | "markReady" | "markError"
>;

/** Writes changes into a collection, those that arrived together in one transaction. */
export class RowWriter<T extends object, K extends string | number> {
  readonly #getKey: (row: T) => K;
  readonly #writes: Writes<T, K>;
  readonly #held = new Map<string, K>(); // the collection's keys by the table's
  #changes: Change<T>[] = [];
  #isReady = false;

  constructor(getKey: (row: T) => K, writes: Writes<T, K>) {
    this.#getKey = getKey;
    this.#writes = writes;
  }

  add(change: Change<T>): void {
    this.#changes.push(change);
  }

  /** Write what has been added. */
  flush(): void {
    const changes = this.#changes;
    this.#changes = [];
    if (!changes.length) return;
    this.#writes.begin();
    for (const change of changes) this.#write(change);
    this.#writes.commit();
  }

  /** Write, and mark the collection as complete. */
  complete(): void {
    this.flush();
    if (!this.#isReady) this.#writes.markReady();
    this.#isReady = true;
  }

  /** Let `preload()` fail while no row has come; the next snapshot mends that. */
  refuse(reason: string | null): void {
    if (!this.#isReady) this.#writes.markError(new Error(reason ?? "the service refuses this collection"));
  }

  // An update may be the first event of a row, and an insert may repeat one.
  #write({ operation, key, row }: Change<T>): void {
    if (operation === "truncate") this.#clear();
    else if (key && row) this.#put(keyOf(key), row);
    else if (key) this.#remove(keyOf(key));
  }

  #clear(): void {
    this.#held.clear();
    this.#writes.truncate({ markReady: false });
  }

  #put(at: string, value: T): void {
    const key = this.#getKey(value);
    const held = this.#held.get(at);
    if (held !== undefined && held !== key) this.#remove(at);
    this.#writes.write({ type: this.#held.has(at) ? "update" : "insert", value });
    this.#held.set(at, key);
  }

  #remove(at: string): void {
    const key = this.#held.get(at);
    if (key === undefined) return;
    this.#held.delete(at);
    this.#writes.write({ type: "delete", key });
  }
}
