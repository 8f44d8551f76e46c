import type { ColumnConditions, TableWhere } from "./types.js";

const OPERATORS = ["eq", "neq", "lt", "lte", "gt", "gte", "in", "is"];

/** Conditions in the service's grammar: `{ status: { eq: "paid" } }` is `status.eq.paid`. */
export function conditions(where: TableWhere | undefined): string[] {
  if (where === undefined || where === null) return [];
  if (typeof where === "string") return [where];
  if (Array.isArray(where)) return where.map(String);
  const columns = Object.entries(where as ColumnConditions);
  return columns.flatMap(([column, tests]) => columnConditions(column, tests));
}

/** Whether these are conditions by column, not by table. */
export function isByColumn(where: unknown): boolean {
  return isPlain(where) && Object.values(where).every(isPlain);
}

function isPlain(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function columnConditions(column: string, tests: unknown): string[] {
  if (!isPlain(tests)) {
    throw new TypeError(`where: ${column} needs an operator, as in { ${column}: { eq: ... } }`);
  }
  const given = Object.entries(tests).filter(([, value]) => value !== undefined);
  return given.map(([operator, value]) => `${column}.${operator}.${operand(column, operator, value)}`);
}

function operand(column: string, operator: string, value: unknown): string {
  if (!OPERATORS.includes(operator)) {
    throw new TypeError(`where: ${operator} of ${column} is none of ${OPERATORS.join(", ")}`);
  }
  if (operator === "is") return "null";
  if (operator !== "in") return text(column, value);
  if (!Array.isArray(value)) throw new TypeError(`where: ${column}.in needs an array`);
  return `(${value.map((item) => quoted(text(column, item))).join(",")})`;
}

function text(column: string, value: unknown): string {
  if (value === null) {
    throw new TypeError(`where: nothing equals null; write { ${column}: { is: null } }`);
  }
  return value instanceof Date ? value.toISOString() : String(value);
}

function quoted(item: string): string {
  if (item && !/[",()\\\s]/.test(item)) return item;
  return `"${item.replace(/["\\]/g, "\\$&")}"`;
}
