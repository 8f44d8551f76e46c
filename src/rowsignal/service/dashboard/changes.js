// A change as people read it: what was beside what is.

import { h } from "./elements.js";
import { keyText, value } from "./format.js";

export const KINDS = { insert: "+", update: "Δ", delete: "−", truncate: "∅" };

/** A change of the log's answers, as the client script would have made it. */
export function fromLog(logged) {
  const { operation, schema, table, key, row = null, old = null, changed = null } = logged;
  return {
    operation,
    table: `${schema}.${table}`,
    key,
    row,
    old,
    changed,
    transactionId: logged.transaction_id,
    capturedAt: logged.captured_at,
    source: "log",
  };
}

/** When a change was captured, in milliseconds. */
export function timeOf({ capturedAt, at }) {
  const time = Date.parse(capturedAt ?? "");
  return Number.isNaN(time) ? (at ?? Date.now()) : time;
}

/** `shop.orders 42`, with the schema set back. */
export function subject({ table, key }) {
  const [schema, ...name] = table.split(".");
  return [
    h("span", { class: "schema" }, `${schema}.`),
    h("b", {}, name.join(".")),
    key ? h("span", { class: "key" }, ` ${"" in key ? "key not shown" : keyText(key)}`) : null,
  ];
}

/** What a change did, in a line of values. */
export function values({ operation, key, row, old, changed }) {
  if (operation === "truncate") return ["every row is gone"];
  if (operation === "delete") return listed(old, Object.keys(key ?? {}), "del");
  if (operation === "insert") return listed(row, Object.keys(key ?? {}), "span");
  if (!key) return ["many rows at once"];
  if (!changed?.length) return ["something changed"];
  return changed.flatMap((column) => difference(column, old, row));
}

/** All of a change as lower-case text, to search in. */
export function searchable({ operation, table, key, row, old, changed }) {
  const parts = [operation, table, ...Object.values(key ?? {}), ...(changed ?? []), ...Object.values(row ?? old ?? {})];
  return parts.map((part) => value(part, 200)).join(" ").toLowerCase();
}

function listed(row, keys, tag) {
  const shown = Object.entries(row ?? {}).filter(([name]) => !keys.includes(name)).slice(0, 5);
  return shown.map(([name, content]) => pair(name, h(tag, {}, value(content, 22))));
}

function difference(column, old, row) {
  const before = old && column in old ? [h("del", {}, value(old[column], 30)), arrow()] : [];
  const now = row && column in row ? value(row[column], 30) : "changed";
  return [pair(column, ...before, h("ins", {}, now))];
}

function pair(name, ...content) {
  return h("span", { class: "pair" }, h("span", { class: "column" }, name), ...content);
}

function arrow() {
  return h("span", { class: "to", "aria-hidden": "true" }, "→");
}
