import type { KeyValue, PerTable, Some, StreamQuery, TableWhere } from "./types.js";
import { conditions, isByColumn } from "./where.js";

/** Where the service is when the options do not say. */
export type DefaultBase = () => URL;

/** Address of the stream that `query` asks for, without position, snapshot and ticket. */
export function streamAddress<R extends object>(query: StreamQuery<R>, fallback: DefaultBase): string {
  const { url, tables, pk, where, columns, operations, conflate } = query;
  const names = listed(tables);
  if (!names.length) throw new TypeError('tables is missing: say which, as tables: "public.orders"');
  const path = names.length === 1 ? `changes/${encodeURIComponent(names[0]!)}` : "changes";
  const target = below(baseOf(url, fallback), path);
  const add = (name: string, values: string[]) =>
    values.forEach((value) => target.searchParams.append(name, value));
  if (names.length > 1) add("table", names);
  add("pk", qualified(names, pk as PerTable<KeyValue>, keyText));
  add("where", whereTexts(names, where));
  add("columns", qualified(names, columns, String));
  if (operations) add("operations", [listed(operations).join(",")]);
  if (conflate) add("conflate", ["true"]);
  return target.href;
}

/** Where tickets are issued. */
export function ticketAddress(url: string | URL | undefined, fallback: DefaultBase): string {
  return below(baseOf(url, fallback), "tickets").href;
}

/** `v1/` at the root of the page's or the worker's origin. */
export function pageBase(): URL {
  return new URL("/v1/", here("/v1/"));
}

/** A value, several, or none, as an array. */
export function listed<T>(value: Some<T> | undefined | null): T[] {
  if (value === undefined || value === null) return [];
  return Array.isArray(value) ? [...value] : [value as T];
}

function baseOf(url: string | URL | undefined, fallback: DefaultBase): URL {
  const base = url ? (parsed(String(url)) ?? new URL(url, here(String(url)))) : fallback();
  if (!/^https?:$/.test(base.protocol)) {
    throw new TypeError(`url: ${base.href} does not begin with http:// or https://`);
  }
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

function parsed(url: string, base?: string): URL | null {
  try {
    return new URL(url, base);
  } catch {
    return null; // URL.canParse is missing in browsers that the rest runs in
  }
}

function here(wanted: string): string {
  const place = globalThis.document?.baseURI ?? globalThis.location?.href;
  if (place && parsed("/", place)) return place;
  throw new TypeError(
    `"${wanted}" has no page that it is relative to here: give url as a whole,` +
      ' as url: "https://app.example/v1"',
  );
}

function below(base: URL, path: string): URL {
  const target = new URL(path, base);
  target.search = base.search;
  return target;
}

function keyText(key: KeyValue | readonly KeyValue[]): string {
  if (!Array.isArray(key)) return String(key);
  return JSON.stringify(key, (_, part) => (typeof part === "bigint" ? String(part) : part));
}

// A list is for the one table; with several, an object says which table each value is for.
function qualified<T>(names: string[], values: PerTable<T> | undefined, text: (value: T) => string): string[] {
  if (values === null || typeof values !== "object" || Array.isArray(values)) {
    return listed(values as Some<T>).map(text);
  }
  const entries = Object.entries(values as Record<string, Some<T>>);
  return entries.flatMap(([name, items]) => listed(items).map((item) => prefix(names, name) + text(item)));
}

function whereTexts(names: string[], where: unknown): string[] {
  if (where === null || typeof where !== "object" || Array.isArray(where)) {
    return conditions(where as TableWhere);
  }
  if (names.length === 1 && isByColumn(where) && !(names[0]! in where)) {
    return conditions(where as TableWhere);
  }
  const entries = Object.entries(where as Record<string, TableWhere>);
  return entries.flatMap(([name, own]) => conditions(own).map((text) => prefix(names, name) + text));
}

function prefix(names: string[], name: string): string {
  return names.length > 1 ? `${name}:` : "";
}
