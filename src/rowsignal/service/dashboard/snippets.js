// The same row from elsewhere: as a command, a query, a program.

import { addressOf, keyPath } from "./api.js";

/** Code that leads to a change's row; `null` for changes without a key. */
export function snippets(change, token) {
  const { table, key } = change;
  return { curl: curl(table, key, token), psql: psql(table, key), Python: python(table, key) };
}

function curl(table, key, token) {
  const address = addressOf(`v1/changes/${encodeURIComponent(table)}?pk=${keyPath(key)}&snapshot=true`);
  const sign = token ? ' \\\n  -H "Authorization: Bearer $ROWSIGNAL_TOKEN"' : "";
  return `curl -N '${address.href.replaceAll("'", "%27")}'${sign}`;
}

function psql(table, key) {
  const [schema, ...name] = table.split(".");
  const tests = Object.entries(key).map(([column, content]) => `${quoted(column)} = ${literal(content)}`);
  return `SELECT * FROM ${quoted(schema)}.${quoted(name.join("."))}\nWHERE ${tests.join(" AND ")};`;
}

function python(table, key) {
  const model = modelName(table.split(".").slice(1).join("."));
  const parts = Object.values(key).map(pythonValue);
  return [
    "from rowsignal import watch",
    "",
    `# ${model} is the mapped class of ${table}`,
    `async with watch(engine, ${model}, pk=${parts.length === 1 ? parts[0] : `(${parts.join(", ")})`}) as changes:`,
    "    async for change in changes:",
    "        print(change)",
  ].join("\n");
}

// A name that needs no quotes may still be a word of SQL: those few are quoted as well.
function quoted(name) {
  return /^[a-z_][a-z0-9_]*$/.test(name) && !RESERVED.has(name) ? name : `"${name.replaceAll('"', '""')}"`;
}

function literal(content) {
  if (typeof content === "number" || typeof content === "boolean") return String(content);
  const text = typeof content === "string" ? content : JSON.stringify(content);
  const escaped = text.replaceAll("'", "''");
  return escaped.includes("\\") ? `E'${escaped.replaceAll("\\", "\\\\")}'` : `'${escaped}'`;
}

function pythonValue(content) {
  if (typeof content === "boolean") return content ? "True" : "False";
  return JSON.stringify(typeof content === "object" ? JSON.stringify(content) : content);
}

/** `order_items` as a class is usually called: `OrderItem`. */
function modelName(table) {
  const words = table.split(/[^A-Za-z0-9]+/).filter(Boolean).map((word) => word[0].toUpperCase() + word.slice(1));
  const name = words.join("").replace(/ies$/, "y").replace(/(?<=[^s])s$/, "");
  return /^[A-Za-z]/.test(name) ? name : `Table${name}`;
}

// Words that PostgreSQL does not take for a column or a table without quotes (its manual, appendix C).
const RESERVED = new Set(
  `all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
  column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
  current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
  from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
  localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
  returning right select session_user similar some symmetric system_user table tablesample then to trailing true
  union unique user using variadic verbose when where window with`.split(/\s+/),
);
