import { createCollection, createLiveQueryCollection, eq } from "@tanstack/db";
import { afterEach, beforeEach, expect, test } from "vitest";

import { rowsignalCollectionOptions } from "@rowsignal/tanstack-db";

import { change, end, frame, position, row, ScriptedService, until } from "../../client/test/service.js";

interface Order {
  id: number;
  status: string;
}

let service: ScriptedService;
let cleanups: (() => Promise<void>)[];

beforeEach(async () => {
  service = await new ScriptedService().start();
  service.opening = () => end([row(1, "new"), row(2, "new")], position(500));
  cleanups = [];
});

afterEach(async () => {
  await Promise.all(cleanups.map((cleanup) => cleanup()));
  await service.stop();
});

function orders(more: object = {}) {
  const options = rowsignalCollectionOptions<Order, number>({
    id: "orders",
    table: "public.orders",
    url: service.url,
    retryDelays: [1, 20],
    getKey: (order) => order.id,
    ...more,
  });
  const collection = createCollection(options);
  cleanups.push(() => collection.cleanup());
  return collection;
}

const plain = (rows: Iterable<Order>) => [...rows].map(({ id, status }) => `${id} ${status}`).sort();

test("a collection holds the table's rows and follows it", async () => {
  const collection = orders();
  await collection.preload();
  expect(plain(collection.values())).toEqual(["1 new", "2 new"]);
  service.send(
    change("update", 1, "paid"),
    change("delete", 2, null),
    change("insert", 3, "new"),
    change("insert", 3, "newer"),
    change("update", 4, "comes into sight"),
  );
  await until(() => collection.size === 3);
  expect(plain(collection.values())).toEqual(["1 paid", "3 newer", "4 comes into sight"]);
  service.send(frame("truncate", { operation: "truncate", schema: "public", table: "orders", key: null }));
  await until(() => collection.size === 0);
  service.send(change("insert", 1, "again"));
  await until(() => collection.size === 1);
  expect(collection.status).toBe("ready");
});

test("after a reset it holds what the table holds", async () => {
  const collection = orders();
  await collection.preload();
  service.opening = () => end([row(2, "paid"), row(3, "new")], position(600));
  service.send(frame("reset", { reason: "the log was pruned" }, ""));
  await until(() => collection.get(3));
  expect(plain(collection.values())).toEqual(["2 paid", "3 new"]);
});

test("a live query keeps up", async () => {
  const collection = orders();
  const paid = createLiveQueryCollection((query) =>
    query.from({ order: collection }).where(({ order }) => eq(order.status, "paid")),
  );
  cleanups.unshift(() => paid.cleanup());
  await paid.preload();
  expect(paid.size).toBe(0);
  service.send(change("update", 2, "paid"));
  await until(() => paid.size === 1);
  expect(plain(paid.values())).toEqual(["2 paid"]);
});

test("an optimistic row stays until the stream has passed the write, and is then the table's", async () => {
  const collection = orders({
    onUpdate: async () => {
      service.send(change("update", 1, "paid by the server", position(701), 700));
      await collection.utils.awaitTransaction(700);
    },
  });
  await collection.preload();
  const seen: string[] = [];
  collection.subscribeChanges((changes) => seen.push(...changes.map(({ value }) => value.status)));
  const done = collection.update(1, (draft) => {
    draft.status = "paid, I hope";
  });
  expect(collection.get(1)!.status).toBe("paid, I hope");
  await done.isPersisted.promise;
  expect(collection.get(1)!.status).toBe("paid by the server");
  expect(seen).toEqual(["paid, I hope", "paid by the server"]);
});

test("waiting for a transaction of a collection that is not synchronised is refused", async () => {
  await expect(orders().utils.awaitTransaction(1)).rejects.toThrow(/preload\(\) starts that/);
});

test("what the service refuses fails to load, and loads once it is granted", async () => {
  service.refuse = () => [403, { detail: "orders are not for you" }];
  const collection = orders();
  await expect(collection.preload()).rejects.toThrow("orders are not for you");
  service.refuse = () => null;
  await until(() => collection.size === 2);
  expect(collection.status).toBe("ready");
});

test("a cleaned up collection leaves no stream open", async () => {
  const collection = orders();
  await collection.preload();
  await collection.cleanup();
  await until(() => service.open === 0);
});
