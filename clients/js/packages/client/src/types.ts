/** A row's column values: large integers and numerics as strings, timestamps as ISO 8601. */
export type Row = Record<string, unknown>;

export type Operation = "insert" | "update" | "delete" | "truncate";

/** One change, or one difference that a snapshot brought. */
export interface Change<R extends object = Row> {
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
  /** PostgreSQL's `pg_current_xact_id()` of the writer. */
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
  /** `leader` holds the stream for the other tabs, `follower` receives it from the leader. */
  role: "alone" | "leader" | "follower";
}

export type Some<T> = T | readonly T[];
/** For one table the values; for several an object that says which table they are for. */
export type PerTable<T> = Some<T> | Record<string, Some<T>>;
export type KeyValue = string | number | bigint | boolean;

/** What a column may be compared with: its own type, and texts for what JSON carries as text. */
export type Comparable<V> =
  | V
  | (string extends V ? number | bigint | Date : never)
  | (number extends V ? bigint | string : never);

/** Conditions on one column; all must hold. */
export interface Conditions<V> {
  eq?: Comparable<V>;
  neq?: Comparable<V>;
  lt?: Comparable<V>;
  lte?: Comparable<V>;
  gt?: Comparable<V>;
  gte?: Comparable<V>;
  in?: readonly Comparable<V>[];
  is?: null;
}

/** Conditions by column, as `{ status: { eq: "paid" }, total: { gt: 100 } }`; all must hold. */
export type ColumnConditions<R extends object = Row> = {
  [C in keyof R]?: Conditions<NonNullable<R[C]>>;
};

/** One condition as text, as `status.eq.paid`, several of them, or conditions by column. */
export type TableWhere<R extends object = Row> = Some<string> | ColumnConditions<R>;
/** For one table its conditions; for several an object that says which table they are for. */
export type Where<R extends object = Row> = TableWhere<R> | Record<string, TableWhere>;

/** The argument of a token function. */
export interface TokenRequest {
  /** The service has just refused the last token: give another one, not one from a cache. */
  refused: boolean;
}

export type Token = string | ((request: TokenRequest) => string | null | Promise<string | null>);
export type RequestHeaders = Record<string, string>;

/** Which rows are wanted. */
export interface StreamQuery<R extends object = Row> {
  /** `schema.table`, or several. */
  tables: Some<string>;
  /** What comes before `/changes`; its query is kept. */
  url?: string | URL;
  /** Keys of the wanted rows; a composite key is an array within the list: `[[1, "a"]]`. */
  pk?: KeyValue | readonly (KeyValue | readonly KeyValue[])[] | Record<string, KeyValue | readonly (KeyValue | readonly KeyValue[])[]>;
  /** Conditions that all must hold, as `status.eq.paid` or `{ status: { eq: "paid" } }`. */
  where?: NoInfer<Where<R>>;
  /** Only updates that changed one of these columns. */
  columns?: PerTable<string>;
  operations?: Some<Operation>;
  /** Keep only the newest change of each row when this reader is slow. */
  conflate?: boolean;
}

/** Listeners from the start; `subscription.on` adds more. */
export interface Callbacks<R extends object = Row> {
  onChange?(change: Change<R>): void;
  /** The rows are complete: at first, and whenever they had to be read again. */
  onSnapshot?(subscription: Subscription<R>): void;
  /** Changes may be missing up to here; with `snapshot` the differences follow by themselves. */
  onReset?(reason: string): void;
  onState?(state: State): void;
}

/** How the service is reached, and with which credentials. */
export interface Connection {
  /**
   * `fetch` (the default) can send headers and learns why it was refused; `eventsource` is the
   * browser's own, which cannot: a `token` is changed into a ticket at `tickets` for it.
   */
  transport?: "fetch" | "eventsource";
  /** A bearer token, or a function that is asked before each connection and after each 401. */
  token?: Token;
  /** Headers for each request, or a function that is asked for them; not with `eventsource`. */
  headers?: RequestHeaders | (() => RequestHeaders | Promise<RequestHeaders>);
  /** A single-use ticket for the query, asked for before each connection. */
  ticket?: string | (() => string | Promise<string>);
  /** Send cookies to another origin. */
  withCredentials?: boolean;
  /** What to use instead of the global `fetch`. */
  fetch?: typeof fetch;
  /** First and longest pause before reconnecting, in milliseconds; default `[500, 30000]`. */
  retryDelays?: readonly [number, number];
  /** Milliseconds in which a connection must open; default 20000. */
  connectTimeout?: number;
}

export interface SubscribeOptions<R extends object = Row>
  extends StreamQuery<R>,
    Callbacks<R>,
    Connection {
  /** Start with the current rows and keep the maps complete; default true. */
  snapshot?: boolean;
  /**
   * Resume after a position of an earlier subscription: no snapshot then, so the maps hold only
   * what changes, until a reset fills them. Such a subscription is not shared.
   */
  after?: string | undefined;
  /**
   * Share one connection among tabs that subscribe to the same; a string names the user, so that
   * tabs of different users stay apart. Default true in pages, but false with `ticket`, `token`
   * or `headers`.
   */
  share?: boolean | string;
  /** Rows kept of each table without `snapshot`, the latest changed; default 10000. */
  maxRows?: number;
}

/** What listeners of each event are given. */
export interface Events<R extends object = Row> {
  /** One change. */
  change: Change<R>;
  /** Rows have changed: once for all changes that arrived together. */
  rows: Subscription<R>;
  snapshot: Subscription<R>;
  reset: string;
  state: State;
}

export interface AwaitOptions {
  /** Milliseconds until it is given up; default 30000. */
  timeout?: number;
  signal?: AbortSignal;
}

export interface Subscription<R extends object = Row> {
  /**
   * Rows of the first table, by `keyOf(key)`, in the order in which they came. Never changed
   * afterwards: after a change this is another map, and without one it is the same.
   */
  readonly rows: ReadonlyMap<string, R>;
  /** The same as an array, under the same rule. */
  readonly list: readonly R[];
  /** One row of the first table by its key, without a copy of the map. */
  get(key: object): R | undefined;
  /** Rows of one of the tables, by `keyOf(key)`. */
  of<T extends object = R>(table: string): ReadonlyMap<string, T> | undefined;
  readonly position: string | null;
  /** Another object whenever something about it has changed. */
  readonly state: State;
  /** Settles when the subscription is live for the first time; rejects when closed before. */
  readonly ready: Promise<Subscription<R>>;
  /** Add a listener; the returned function removes it. */
  on<E extends keyof Events<R>>(event: E, listener: (value: Events<R>[E]) => void): () => void;
  /**
   * Wait until the rows show a committed transaction: its id is `pg_current_xact_id()`, as each
   * change carries it. Rejects with `TransactionTimeoutError`, or when the subscription is closed.
   */
  awaitTransaction(id: string | number | bigint, options?: AwaitOptions): Promise<void>;
  /** End it for good: no callback comes afterwards but `onState` with `closed`. */
  close(): void;
}
