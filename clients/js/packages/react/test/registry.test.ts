import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { BEFORE, keyFor, Registry } from "../src/registry.js";
import { change, end, frame, row, ScriptedService, until } from "../../client/test/service.js";

let service: ScriptedService;
let ends: (() => void)[];

beforeEach(async () => {
  service = await new ScriptedService().start();
  service.opening = () => end([row(1, "new")], "1");
  ends = [];
});

afterEach(async () => {
  ends.forEach((end) => end());
  await service.stop();
});

function listen(registry: Registry, key: string, listener: () => void): void {
  const options = { tables: "public.orders", url: service.url };
  ends.push(registry.listen(key, options, listener));
}

test("components share a subscription, and see one object until something changes", async () => {
  const registry = new Registry();
  const listeners = [vi.fn(), vi.fn()];
  expect(registry.read("orders")).toBe(BEFORE);
  for (const listener of listeners) listen(registry, "orders", listener);
  await until(() => registry.read("orders").isReady);
  const seen = registry.read("orders");
  expect(seen.rows).toEqual([{ id: 1, status: "new" }]);
  expect(seen.subscription!.get({ id: 1 })).toBe(seen.rows[0]);
  expect(registry.read("orders")).toBe(seen);
  service.send(frame("heartbeat", { interval: 15 }, "1"), frame("heartbeat", { interval: 15 }, "2"));
  await until(() => seen.subscription!.position === "2");
  expect(registry.read("orders")).toBe(seen);
  service.send(change("update", 1, "paid", "2"));
  await until(() => registry.read("orders") !== seen);
  expect(registry.read("orders").rows).toEqual([{ id: 1, status: "paid" }]);
  expect(listeners.map((listener) => listener.mock.calls.length > 0)).toEqual([true, true]);
  expect(service.asked.length).toBe(1);
});

test("one that is left is kept for a moment, for a component that comes back, and then closed", async () => {
  const registry = new Registry();
  listen(registry, "orders", () => undefined);
  await until(() => registry.read("orders").isReady);
  ends.splice(0).forEach((end) => end());
  listen(registry, "orders", () => undefined);
  expect(registry.read("orders").isReady).toBe(true);
  ends.splice(0).forEach((end) => end());
  await until(() => registry.read("orders") === BEFORE);
  await until(() => service.open === 0);
  expect(service.asked.length).toBe(1);
});

test("what is asked for makes the key, in any order and without functions", () => {
  const token = () => "t";
  expect(keyFor({ tables: "a", pk: [1n], token })).toBe(keyFor({ pk: [1n], tables: "a" }));
  expect(keyFor({ tables: "a", pk: [1n] })).not.toBe(keyFor({ tables: "a", pk: [1] }));
  expect(keyFor({ tables: "a", token: "x" })).not.toBe(keyFor({ tables: "a", token: "y" }));
});
