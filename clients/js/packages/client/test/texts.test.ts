import { describe, expect, test } from "vitest";

import { changesUrl, type StreamQuery } from "../src/index.js";
import { FrameParser } from "../src/frames.js";

interface Order {
  id: number;
  status: "new" | "paid";
  total: string;
  note: string | null;
  placed: string;
}

const url = "https://app.example/v1";
const query = <R extends object>(options: Omit<StreamQuery<R>, "url">) =>
  decodeURIComponent(new URL(changesUrl<R>({ url, ...options })).search.slice(1).replaceAll("+", " "));

describe("addresses", () => {
  test("conditions by column are typed, and become the service's grammar", () => {
    const where = query<Order>({
      tables: "orders",
      where: {
        status: { eq: "paid" },
        total: { gte: 9.5, lt: 100n },
        note: { is: null },
        placed: { gt: new Date(0) },
        id: { in: [1, 2] },
      },
    });
    expect(where.split("&")).toEqual([
      "where=status.eq.paid",
      "where=total.gte.9.5",
      "where=total.lt.100",
      "where=note.is.null",
      "where=placed.gt.1970-01-01T00:00:00.000Z",
      "where=id.in.(1,2)",
    ]);
  });

  test("items of a list are quoted where they have to be", () => {
    const odd = ["a,b", 'c"d', "(e)", "f g", "h\\i", "", "plain"];
    expect(query({ tables: "orders", where: { note: { in: odd } } })).toBe(
      'where=note.in.("a,b","c\\"d","(e)","f g","h\\\\i","",plain)',
    );
  });

  test("types refuse what the table does not have", () => {
    const refused: StreamQuery<Order>[] = [
      // @ts-expect-error -- no such column
      { tables: "orders", where: { statsu: { eq: "paid" } } },
      // @ts-expect-error -- no such status
      { tables: "orders", where: { status: { eq: "payed" } } },
      // @ts-expect-error -- no such operator
      { tables: "orders", where: { status: { like: "p" } } },
    ];
    expect(refused.length).toBe(3);
    const loose = { tables: "orders", where: { status: { like: "p%" } } } as unknown as StreamQuery;
    expect(() => changesUrl({ url, ...loose })).toThrow(/none of eq, neq/);
    const equal = { tables: "orders", where: { note: { eq: null } } } as unknown as StreamQuery;
    expect(() => changesUrl({ url, ...equal })).toThrow(/\{ is: null \}/);
  });

  test("of several tables each condition says which it is for", () => {
    expect(
      query({
        tables: ["a", "b"],
        where: { a: ["n.gt.1", "m.lt.2"], b: { n: { eq: 3 } } },
        pk: { a: [1, 2], b: [["x", 3n]] },
        columns: { a: "n" },
      }).split("&"),
    ).toEqual([
      "table=a", "table=b", "pk=a:1", "pk=a:2", 'pk=b:["x","3"]', "where=a:n.gt.1", "where=a:m.lt.2",
      "where=b:n.eq.3", "columns=a:n",
    ]);
  });

  test("texts for one table need no name, and the url's own query stays", () => {
    const address = changesUrl({ url: `${url}/?tenant=7`, tables: "a/b", where: ["n.gt.1"], conflate: true });
    expect(address).toBe("https://app.example/v1/changes/a%2Fb?tenant=7&where=n.gt.1&conflate=true");
    expect(query({ tables: "orders", where: { orders: { n: { eq: 3 } } } })).toBe("where=n.eq.3");
    expect(query({ tables: "orders", where: { orders: "n.eq.3" } })).toBe("where=n.eq.3");
  });
});

describe("frames", () => {
  const text =
    "\uFEFFretry: 5\r\n\r\n: a comment\nid: 1\nevent: insert\ndata: {\"a\":\ndata:  \"é\"}\n\ndata\rid\r\rdata: x\nevent: cut";
  const events = [
    { type: "insert", data: '{"a":\n "é"}', id: "1" },
    { type: "message", data: "", id: "" },
  ];

  test("are the same wherever the text was cut", () => {
    for (let size = 1; size <= text.length; size += 1) {
      const parser = new FrameParser();
      const pieces = text.match(new RegExp(`[^]{1,${size}}`, "g"))!;
      expect(pieces.flatMap((piece) => parser.feed(piece))).toEqual(events);
    }
  });
});
