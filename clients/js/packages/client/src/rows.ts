import type { Operation, Row } from "./types.js";

export type RowMap = Map<string, Row>;

/** The data of a row's event, as the service sends it. */
export interface RowData {
  schema: string;
  table: string;
  key: Row | null;
  row?: Row | null;
}

/** What another tab needs to go on from here. */
export interface Contents {
  keys: string[][];
  maps: RowMap[];
}

export interface Difference {
  operation: Operation;
  table: string;
  key: Row;
  row: Row | null;
  old: Row | null;
  changed: string[] | null;
}

type Unnamed = Omit<Difference, "table" | "key"> & { at: string };

/** Text that identifies a row within its table: the key of the maps. */
export function keyOf(key: object): string {
  return JSON.stringify(Object.values(key));
}

/** Columns whose values differ. */
export function differing(old: object, row: object): string[] {
  const [before, now] = [old as Row, row as Row];
  const names = Object.keys({ ...before, ...now });
  return names.filter((name) => JSON.stringify(before[name]) !== JSON.stringify(now[name]));
}

/** The rows of each table, and beside them those of a snapshot that is still arriving. */
export class Rows {
  readonly #names: string[];
  readonly #limit: number;
  #keys: string[][]; // names of each table's key columns
  readonly #maps: RowMap[];
  readonly #shown: (ReadonlyMap<string, Row> | null)[];
  #list: readonly Row[] | null = null;
  #staged: RowMap[] | null = null;

  constructor(names: string[], limit: number) {
    this.#names = names;
    this.#limit = limit;
    this.#keys = names.map(() => []);
    this.#maps = this.#empty();
    this.#shown = names.map(() => null);
  }

  /** A table's rows in a map that stays as it is; copied only when it was asked for since. */
  of(index: number): ReadonlyMap<string, Row> | undefined {
    const map = this.#maps[index];
    return map && (this.#shown[index] ??= new Map(map));
  }

  /** The first table's rows as an array that stays as it is. */
  get list(): readonly Row[] {
    return (this.#list ??= [...(this.#maps[0]?.values() ?? [])]);
  }

  /** One row of the first table as it is now. */
  get(at: string): Row | undefined {
    return this.#maps[0]?.get(at);
  }

  contents(): Contents {
    return { keys: this.#keys, maps: this.#maps };
  }

  stage(data: RowData): void {
    this.#staged ??= this.#empty();
    if (data.key && data.row) this.#staged[this.#place(data)]!.set(keyOf(data.key), data.row);
  }

  unstage(): void {
    this.#staged = null;
  }

  /** Let the snapshot take the place of what was there; return the differences. */
  swap(): Difference[] {
    const maps = this.#staged ?? this.#empty();
    this.#staged = null;
    return this.replace({ keys: this.#keys, maps });
  }

  /** Take over other contents, in maps of our own; return the differences. */
  replace({ keys, maps }: Contents): Difference[] {
    this.#keys = keys;
    return this.#maps.flatMap((map, index) => this.#become(index, map, maps[index] ?? new Map()));
  }

  /** Apply one change; return the row held before, if any. */
  apply(operation: Operation, data: RowData): Row | undefined {
    const index = this.#place(data);
    const map = this.#maps[index]!;
    this.#outdate(index);
    if (operation === "truncate") return void map.clear();
    const at = keyOf(data.key!);
    const held = map.get(at);
    if (operation === "delete" || !data.row) map.delete(at);
    else this.#put(map, at, data.row);
    return held;
  }

  // Bounded, a map keeps the rows that changed last; else each row keeps its place.
  #put(map: RowMap, at: string, row: Row): void {
    if (this.#limit !== Infinity) map.delete(at);
    map.set(at, row);
    if (map.size > this.#limit) map.delete(map.keys().next().value!);
  }

  #become(index: number, map: RowMap, wanted: RowMap): Difference[] {
    const changes = differences(map, wanted);
    if (changes.length) this.#outdate(index);
    for (const { at, row } of changes) row ? map.set(at, row) : map.delete(at);
    return changes.map(({ at, ...change }) => ({ ...change, ...this.#named(index, at) }));
  }

  #outdate(index: number): void {
    this.#shown[index] = null;
    if (index === 0) this.#list = null;
  }

  #empty(): RowMap[] {
    return this.#names.map(() => new Map());
  }

  #place({ schema, table, key }: RowData): number {
    const found = this.#names.findIndex((name) => name === `${schema}.${table}` || name === table);
    const index = Math.max(found, 0);
    if (key) this.#keys[index] = Object.keys(key);
    return index;
  }

  #named(index: number, at: string): { table: string; key: Row } {
    const values: unknown[] = JSON.parse(at);
    const names = this.#keys[index] ?? [];
    const key = Object.fromEntries(names.map((name, place) => [name, values[place]]));
    return { table: this.#names[index]!, key };
  }
}

function differences(old: RowMap, now: RowMap): Unnamed[] {
  const changes: Unnamed[] = [];
  for (const [at, row] of now) {
    const before = old.get(at);
    const changed = before ? differing(before, row) : null;
    if (!before) changes.push({ operation: "insert", at, row, old: null, changed: null });
    else if (changed!.length) changes.push({ operation: "update", at, row, old: before, changed });
  }
  for (const [at, row] of old) {
    if (!now.has(at)) changes.push({ operation: "delete", at, row: null, old: row, changed: null });
  }
  return changes;
}
