import { afterEach, beforeEach, expect, test } from "vitest";

import { subscribe, type Subscription, TransactionTimeoutError } from "../src/index.js";
import { hasPassed } from "../src/positions.js";
import { between, change, end, frame, position, row, ScriptedService, until } from "./service.js";

let service: ScriptedService;
let orders: Subscription;

beforeEach(async () => {
  service = await new ScriptedService().start();
});

afterEach(async () => {
  orders.close();
  await service.stop();
});

async function follow(opening: string): Promise<void> {
  service.opening = () => opening;
  orders = subscribe({ tables: "public.orders", url: service.url, retryDelays: [1, 20] });
  await orders.ready;
}

/** Tell whether a promise has settled once everything that has arrived is taken in. */
async function isPending(promise: Promise<unknown>): Promise<boolean> {
  const pending = Symbol("pending");
  const turn = new Promise((resolve) => setImmediate(() => resolve(pending)));
  return (await Promise.race([promise, turn])) === pending;
}

function changed(id: number): Promise<void> {
  return new Promise((resolve) => orders.on("change", ({ key }) => key?.["id"] === id && resolve()));
}

test("it resolves when the position has passed the transaction, and shows all its rows then", async () => {
  await follow(end([], position(500)));
  const passed = orders.awaitTransaction("700");
  const [first, third] = [changed(1), changed(3)];
  service.send(change("insert", 1, "new", between(500, 710, 1), 700));
  await first;
  expect(await isPending(passed)).toBe(true);
  service.send(change("insert", 2, "new", between(500, 710, 2), 700));
  service.send(change("insert", 3, "new", position(710), 705));
  await passed;
  await third;
  expect(orders.rows.size).toBe(3);
});

test("one that wrote nothing to be seen here is passed by a heartbeat", async () => {
  await follow(end([], position(500, 480)));
  const [passed, running] = [orders.awaitTransaction(600), orders.awaitTransaction(480n)];
  service.send(frame("heartbeat", { interval: 15 }, position(601, 480)));
  await passed;
  expect(await isPending(running)).toBe(true);
  service.send(frame("heartbeat", { interval: 15 }, position(602)));
  await running;
});

test("one that nothing else would tell of is asked for beside the stream", async () => {
  await follow(end([], position(500)));
  const beat = (id?: string) => frame("heartbeat", { interval: 15 }, id);
  service.opening = () => beat() + change("insert", 9, "new", between(500, 710, 1), 701) + beat(position(710));
  const [hidden, shown] = [orders.awaitTransaction(700), orders.awaitTransaction(701)];
  await hidden;
  expect(await isPending(shown)).toBe(true);
  expect(service.asked[1]!.query.get("after")).toBe(position(500));
  expect(orders.rows.size).toBe(0);
  service.send(change("insert", 9, "new", position(710), 701));
  await shown;
  expect(orders.rows.size).toBe(1);
  orders.close();
  await until(() => service.open === 0);
});

test("one that is part of what is shown already resolves at once", async () => {
  await follow(end([row(1, "new")], position(500)));
  await orders.awaitTransaction(499);
});

test("of a filtered stream, quiet after its changes is enough", async () => {
  await follow(end([], position(500)));
  const passed = orders.awaitTransaction(700);
  service.send(change("insert", 1, "new", between(500, 710, 1), 700));
  await passed;
  expect(orders.rows.size).toBe(1);
});

test("without a log a heartbeat ends it, or a snapshot that was asked for later", async () => {
  await follow(end([]));
  const seen = orders.awaitTransaction(700);
  service.send(change("insert", 1, "new", undefined, 700), frame("heartbeat", { interval: 15 }));
  await seen;
  const unseen = orders.awaitTransaction(800);
  service.opening = () => end([row(1, "new"), row(2, "new")]);
  service.cut();
  await unseen;
  expect(orders.rows.size).toBe(2);
});

test("one that came before it was waited for resolves, too", async () => {
  await follow(end([]));
  const first = changed(1);
  service.send(change("insert", 1, "new", undefined, 700));
  await first;
  await orders.awaitTransaction(700);
});

test("it gives up in time, with the signal, and with a sentence for what is no id", async () => {
  await follow(end([], position(500)));
  await expect(orders.awaitTransaction(900, { timeout: 5 })).rejects.toThrow(TransactionTimeoutError);
  const ending = new AbortController();
  const aborted = orders.awaitTransaction(900, { signal: ending.signal });
  ending.abort(new Error("left the page"));
  await expect(aborted).rejects.toThrow("left the page");
  expect(() => orders.awaitTransaction("abc")).toThrow(/no transaction id/);
  const closed = orders.awaitTransaction(900);
  orders.close();
  await expect(closed).rejects.toThrow("was closed");
});

test("positions tell by themselves which transactions they see", async () => {
  await follow(end([]));
  const seen = position(1000, 990, 700, 300);
  expect([299n, 300n, 301n, 700n, 989n, 990n, 991n, 999n, 1000n].map((xid) => hasPassed(seen, xid))).toEqual(
    [true, false, true, false, true, false, true, true, false],
  );
  expect(hasPassed(between(50, 60, 3), 49n)).toBe(true);
  expect(hasPassed(between(50, 60, 3), 55n)).toBe(false);
  expect(hasPassed("17", 1n)).toBe(null);
  expect(hasPassed("?", 1n)).toBe(null);
});
