import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { type Change, type State, subscribe, type SubscribeOptions, type Subscription } from "../src/index.js";
import { change, end, frame, row, ScriptedService, until } from "./service.js";

interface Order {
  id: number;
  status: string;
}

let service: ScriptedService;
let open: Subscription<Order>[];

beforeEach(async () => {
  service = await new ScriptedService().start();
  open = [];
});

afterEach(async () => {
  open.forEach((subscription) => subscription.close());
  await service.stop();
});

function follow(options: Partial<SubscribeOptions<Order>> = {}): Subscription<Order> {
  const subscription = subscribe<Order>({
    tables: "public.orders",
    url: service.url,
    retryDelays: [1, 20],
    ...options,
  });
  open.push(subscription);
  return subscription;
}

/** Wait for the next event of a kind that meets a condition. */
function next<E extends "change" | "rows" | "snapshot" | "reset" | "state">(
  subscription: Subscription<Order>,
  event: E,
  isIt: (value: never) => boolean = () => true,
): Promise<void> {
  return new Promise((resolve) => {
    const end = subscription.on(event, (value) => {
      if (!isIt(value as never)) return;
      end();
      resolve();
    });
  });
}

describe("rows", () => {
  test("a snapshot is another object after each change and the same without one", async () => {
    service.opening = () => end([row(1, "new"), row(2, "new")], "1");
    const orders = await follow().ready;
    const { rows, list } = orders;
    expect(orders.rows).toBe(rows);
    expect(orders.list).toBe(list);
    const heard = next(orders, "rows");
    service.send(change("update", 1, "paid", "2"));
    await heard;
    expect(orders.rows).not.toBe(rows);
    expect(rows.get("[1]")).toEqual({ id: 1, status: "new" });
    expect(orders.rows.get("[1]")).toEqual({ id: 1, status: "paid" });
    expect(orders.rows.get("[2]")).toBe(rows.get("[2]"));
    expect(orders.get({ id: 2 })).toBe(rows.get("[2]"));
    const beat = next(orders, "state", () => true);
    const after = orders.rows;
    service.send(frame("heartbeat", { interval: 15 }, "3"));
    service.cut();
    await beat;
    expect(orders.rows).toBe(after);
  });

  test("a changed row keeps its place and a new one comes last", async () => {
    service.opening = () => end([row(1, "new"), row(2, "new"), row(3, "new")], "1");
    const orders = await follow().ready;
    const heard = next(orders, "change", ({ key }: Change) => key?.["id"] === 4);
    service.send(change("update", 1, "paid"), change("delete", 2, null), change("insert", 4, "new"));
    await heard;
    expect(orders.list.map(({ id }) => id)).toEqual([1, 3, 4]);
  });

  test("changes that arrive together are told once to listeners of rows, and one by one to others", async () => {
    const orders = await follow().ready;
    await Promise.resolve();
    let rows = 0;
    const seen: number[] = [];
    orders.on("rows", () => (rows += 1));
    orders.on("change", ({ key }) => seen.push(key?.["id"] as number));
    const last = next(orders, "rows", () => seen.includes(50));
    service.send(...Array.from({ length: 50 }, (_, index) => change("insert", index + 1, "new")));
    await last;
    expect(seen).toEqual(Array.from({ length: 50 }, (_, index) => index + 1));
    expect(rows).toBeLessThan(10);
    expect(orders.rows.size).toBe(50);
  });

  test("every listener is told, whatever another one throws, until it is removed", async () => {
    const errors = vi.spyOn(console, "error").mockReturnValue();
    const onChange = vi.fn();
    const orders = await follow({ onChange }).ready;
    const [first, second] = [vi.fn(), vi.fn()];
    orders.on("change", () => {
      throw new Error("a mistake in the page");
    });
    const remove = orders.on("change", first);
    orders.on("change", second);
    const once = next(orders, "change");
    service.send(change("insert", 1, "new"));
    await once;
    remove();
    const again = next(orders, "change");
    service.send(change("insert", 2, "new"));
    await again;
    expect([onChange, first, second].map((listener) => listener.mock.calls.length)).toEqual([2, 1, 2]);
    expect(errors).toHaveBeenCalledTimes(2);
    errors.mockRestore();
  });
});

describe("connection", () => {
  test("a cut stream resumes after the last position, each change once", async () => {
    service.opening = ({ query }) => (query.has("after") ? change("insert", 3, "new", "4") : end([], "1"));
    const orders = await follow().ready;
    const two = next(orders, "change", ({ key }: Change) => key?.["id"] === 2);
    service.send(change("insert", 1, "new", "2"), change("insert", 2, "new", "3"));
    await two;
    const three = next(orders, "change", ({ key }: Change) => key?.["id"] === 3);
    service.cut();
    await three;
    expect(service.asked.map(({ query }) => query.toString())).toEqual(["snapshot=true", "after=3"]);
    expect(orders.list.map(({ id }) => id)).toEqual([1, 2, 3]);
  });

  test("a token function is asked before each connection, and again after a 401", async () => {
    const token = vi.fn(({ refused }: { refused: boolean }) => (refused ? "fresh" : "stale"));
    service.refuse = ({ headers }) =>
      headers.authorization === "Bearer fresh" ? null : [401, { detail: "the token has expired" }];
    const orders = await follow({ token, headers: { "x-tenant": "7" } }).ready;
    expect(token.mock.calls.map(([request]) => request.refused)).toEqual([false, true]);
    expect(service.asked.at(-1)!.headers["x-tenant"]).toBe("7");
    const again = next(orders, "state", ({ status }: State) => status === "live");
    service.cut();
    await again;
    expect(token.mock.calls.map(([request]) => request.refused)).toEqual([false, true, false, true]);
  });

  test("what is refused for good says why, and is tried again at long intervals", async () => {
    service.refuse = () => [401, { detail: "the token is not good" }];
    const orders = follow({ token: async () => "bad", retryDelays: [1, 60_000] });
    await next(orders, "state", ({ status }: State) => status === "refused");
    expect(orders.state.reason).toBe("the token is not good");
    expect(orders.state.retryAt! - Date.now()).toBeGreaterThan(20_000);
    expect(service.asked.length).toBe(2);
  });

  test("the service says when to come back", async () => {
    service.refuse = () => [503, { title: "Busy" }, { "retry-after": "40" }];
    const orders = follow();
    await next(orders, "state", ({ status }: State) => status === "waiting");
    expect(orders.state.reason).toBe("Busy");
    expect(orders.state.retryAt! - Date.now()).toBeGreaterThan(30_000);
  });

  test("an answer that is no stream is named as such", async () => {
    service.refuse = () => [200, { hello: "world" }];
    const orders = follow();
    await next(orders, "state", ({ status }: State) => status === "waiting");
    expect(orders.state.reason).toMatch(/application\/json, which is no stream/);
  });

  test("a reset reads the rows again and tells the differences", async () => {
    service.opening = () => end([row(1, "new"), row(2, "new")], "1");
    const resets = vi.fn();
    const orders = await follow({ onReset: resets }).ready;
    service.opening = () => end([row(2, "paid"), row(3, "new")], "9");
    const changes: Change<Order>[] = [];
    orders.on("change", (change) => changes.push(change));
    const again = next(orders, "snapshot");
    service.send(frame("reset", { reason: "the log was pruned" }, ""));
    await again;
    expect(resets).toHaveBeenCalledWith("the log was pruned");
    expect(changes.map(({ operation, key }) => [operation, key!["id"]])).toEqual([
      ["update", 2],
      ["insert", 3],
      ["delete", 1],
    ]);
    expect(service.asked.at(-1)!.query.toString()).toBe("snapshot=true");
  });

  test("a row that cannot be shown is dropped, and the stream goes on", async () => {
    const refused = (id: number, position?: string) => {
      const about = { schema: "public", table: "orders", key: { id } };
      return frame("reset", { reason: `not ${id}`, continues: true, ...about }, position);
    };
    service.opening = () => refused(9) + end([row(1, "new"), row(2, "new")], "1");
    const resets = vi.fn();
    const orders = await follow({ onReset: resets }).ready;
    const changes: Change<Order>[] = [];
    orders.on("change", (change) => changes.push(change));
    service.send(refused(2, "7"));
    await until(() => changes.length);
    expect(changes[0]).toMatchObject({ operation: "delete", key: { id: 2 }, position: "7" });
    expect(resets.mock.calls).toEqual([["not 9"], ["not 2"]]);
    expect([...orders.rows.values()].map(({ id }) => id)).toEqual([1]);
    expect([orders.state.status, service.asked.length]).toEqual(["live", 1]);
    service.cut();
    await service.requested(2);
    expect(service.asked.at(-1)!.query.get("after")).toBe("7");
  });

  test("a closed one ends its stream, and its ready promise if it never was live", async () => {
    service.opening = () => "";
    const orders = follow();
    await service.requested(1);
    orders.close();
    await expect(orders.ready).rejects.toThrow("closed before it was live");
    expect(orders.state.status).toBe("closed");
    await expect(orders.awaitTransaction(1)).rejects.toThrow("was closed");
    await until(() => service.open === 0);
  });

  test("a query in the url goes along with each request", async () => {
    await follow({ url: `${service.url}?tenant=7` }).ready;
    expect(service.asked[0]!.path).toBe("/v1/changes/public.orders");
    expect(service.asked[0]!.query.toString()).toBe("tenant=7&snapshot=true");
  });
});

describe("without a page", () => {
  test("there is no document here", () => {
    expect(typeof document).toBe("undefined");
  });

  test("a relative url says what is missing", () => {
    expect(() => subscribe({ tables: "public.orders" })).toThrow(/give url as a whole/);
    expect(() => subscribe({ tables: "public.orders", url: "/v1" })).toThrow(/give url as a whole/);
    expect(() => subscribe({ tables: "a", url: "localhost:8080/v1" })).toThrow(/begin with http/);
    expect(() => subscribe({ tables: [], url: "http://x.example" })).toThrow(/tables is missing/);
  });

  test("what an EventSource cannot do is refused", () => {
    const options = { url: service.url, transport: "eventsource", headers: { a: "b" } } as const;
    expect(() => subscribe({ tables: "public.orders", ...options })).toThrow(/cannot send headers/);
  });
});
