import { subscribe, type AwaitOptions, type Row, type SubscribeOptions, type Subscription } from "@rowsignal/client";
import type { BaseCollectionConfig, CollectionConfig, SyncConfig } from "@tanstack/db";

import { RowWriter, type Writes } from "./writer.js";

type Key = string | number;
type Owned = "tables" | "snapshot" | "after" | "onChange" | "onSnapshot" | "maxRows";

/** What a collection of a table is made of: a subscription's options and a collection's. */
export type RowsignalCollectionConfig<T extends object, K extends Key> = Omit<SubscribeOptions<T>, Owned> &
  Omit<BaseCollectionConfig<T, K, never, RowsignalUtils>, "syncMode" | "utils"> & {
    /** `schema.table` */
    table: string;
  };

/** `collection.utils` */
export interface RowsignalUtils extends Record<string, unknown> {
  /**
   * Wait until the collection holds a transaction: call it in `onInsert`, `onUpdate` and
   * `onDelete` with the id that the server returned, so that optimistic rows stay until then.
   */
  awaitTransaction(id: string | number | bigint, options?: AwaitOptions): Promise<void>;
}

const IDLE = "the collection is not synchronised: a live query or preload() starts that";

/** Options for `createCollection`: a collection that keeps in step with a table. */
export function rowsignalCollectionOptions<T extends object = Row, K extends Key = Key>(
  config: RowsignalCollectionConfig<T, K>,
): CollectionConfig<T, K, never, RowsignalUtils> & { utils: RowsignalUtils } {
  let running: Subscription<T> | null = null;
  const { table, ...rest } = config;
  const sync: SyncConfig<T, K>["sync"] = (writes) => {
    const { subscription, end } = follow({ ...rest, tables: table } as SubscribeOptions<T>, config.getKey, writes);
    running = subscription;
    return () => {
      end();
      if (running === subscription) running = null;
    };
  };
  const awaitTransaction: RowsignalUtils["awaitTransaction"] = async (id, options) => {
    if (!running) throw new Error(IDLE);
    return running.awaitTransaction(id, options);
  };
  return { ...config, sync: { sync, rowUpdateMode: "full" }, utils: { awaitTransaction } };
}

function follow<T extends object, K extends Key>(
  options: SubscribeOptions<T>,
  getKey: (row: T) => K,
  writes: Writes<T, K>,
): { subscription: Subscription<T>; end: () => void } {
  const writer = new RowWriter(getKey, writes);
  const subscription = subscribe<T>(options);
  subscription.on("change", (change) => writer.add(change));
  subscription.on("snapshot", () => writer.complete());
  subscription.on("rows", () => writer.flush());
  subscription.on("state", ({ status, reason }) => status === "refused" && writer.refuse(reason));
  return { subscription, end: () => subscription.close() };
}
