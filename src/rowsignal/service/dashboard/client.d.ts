/** Types of `client.js`: row changes of a rowsignal service, kept as live maps of rows. */

/** A row's column values: bigints and numerics as strings, timestamps as ISO 8601. */
export type Row = Record<string, unknown>;

export type Operation = "insert" | "update" | "delete" | "truncate";

/** One change, or one difference that a snapshot brought. */
export interface Change<R extends Row = Row> {
  operation: Operation;
  /** `schema.table` */
  table: string;
  /** Primary key by column; null for a truncate, or when many rows changed at once. */
  key: Row | null;
  /** The row now; null for a delete. */
  row: R | null;
  /** The row before, where the log or the map knows it. */
  old: Partial<R> | null;
  /** Columns that an update gave another value; null says unknown. */
  changed: string[] | null;
  source: "stream" | "snapshot";
  /** Where to resume after this change; null where the table keeps no log. */
  position: string | null;
  /** ISO 8601 time at which the writer's trigger ran. */
  capturedAt?: string;
  transactionId?: string;
}

export interface State {
  /**
   * `connecting`, `live`, `waiting` (tries again at `retryAt`), `refused` (not granted, unknown
   * or malformed: tried again at long intervals) or `closed`.
   */
  status: "connecting" | "live" | "waiting" | "refused" | "closed";
  /** A sentence for people, while not live. */
  reason: string | null;
  /** Milliseconds since the epoch. */
  retryAt: number | null;
  /** Failures in a row. */
  attempt: number;
  /** `leader` holds the stream for the other tabs, `follower` hears it from one. */
  role: "alone" | "leader" | "follower";
}

type Some<T> = T | T[];
/** For one table the values; for several an object that says which table they are for. */
type PerTable<T> = Some<T> | Record<string, Some<T>>;
type Key = string | number | bigint | boolean;

export interface SubscribeOptions<R extends Row = Row> {
  /** `schema.table`, or several. */
  tables: string | string[];
  /** What comes before `/changes`; default `v1/` beside this script. */
  url?: string | URL;
  /** Keys of the wanted rows; a composite key is an array within the list: `[[1, "a"]]`. */
  pk?: Key | (Key | Key[])[] | Record<string, Key | (Key | Key[])[]>;
  /** Filters that all must hold, as `status.eq.paid`. */
  where?: PerTable<string>;
  /** Only updates that changed one of these columns. */
  columns?: PerTable<string>;
  operations?: Some<Operation>;
  /** Keep only the newest change of each row when this reader is slow. */
  conflate?: boolean;
  /** Start with the current rows and keep the maps complete; default true. */
  snapshot?: boolean;
  /**
   * Resume after a position of an earlier subscription: no snapshot then, so the maps hold only
   * what changes, until a reset fills them. Such a subscription is not shared.
   */
  after?: string;
  onChange?(change: Change<R>): void;
  /** The maps are complete: at first, and whenever they had to be read again. */
  onSnapshot?(subscription: Subscription<R>): void;
  /** Changes may be missing up to here; with `snapshot` the differences follow by themselves. */
  onReset?(reason: string): void;
  onState?(state: State): void;
  /** A single-use ticket, asked for before each connection. */
  ticket?: string | (() => string | Promise<string>);
  /** A bearer token, changed into a ticket at `tickets` before each connection. */
  token?: string | (() => string | Promise<string>);
  /** Send cookies to another origin. */
  withCredentials?: boolean;
  /**
   * Share one connection among tabs that subscribe to the same; a string names the user, so that
   * tabs of different users stay apart. Default true, but false with `ticket` or `token`.
   */
  share?: boolean | string;
  /** First and longest pause before reconnecting, in milliseconds; default `[500, 30000]`. */
  retryDelays?: [number, number];
  /** Milliseconds in which a connection must open; default 20000. */
  connectTimeout?: number;
  /** Rows kept of each table without `snapshot`, the latest changed; default 10000. */
  maxRows?: number;
}

export interface Subscription<R extends Row = Row> {
  /** Rows of the first table, by `keyOf(key)`. */
  readonly rows: ReadonlyMap<string, R>;
  /** Rows of one of the tables, by `keyOf(key)`. */
  of(table: string): ReadonlyMap<string, R> | undefined;
  readonly position: string | null;
  readonly state: State;
  /** Settles when the subscription is live for the first time. */
  readonly ready: Promise<Subscription<R>>;
  /** End it for good: no callback comes afterwards but `onState` with `closed`. */
  close(): void;
}

/** Follow tables: the maps hold their rows, `onChange` hears what changes. */
export function subscribe<R extends Row = Row>(options: SubscribeOptions<R>): Subscription<R>;

/** Text that identifies a row within its table: the key of the maps. */
export function keyOf(key: Row): string;

/** Address of the stream that `options` ask for, without position, snapshot and ticket. */
export function changesUrl(options: SubscribeOptions): string;
