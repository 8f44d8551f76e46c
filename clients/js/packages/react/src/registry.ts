import { subscribe, type Row, type State, type SubscribeOptions, type Subscription } from "@rowsignal/client";

/** What components see of a subscription: another object whenever something in it has changed. */
export interface Rows<R extends object = Row> {
  /** All rows, in the order in which they came. */
  readonly rows: readonly R[];
  readonly state: State;
  /** The rows have been complete once; they stay while the connection is away. */
  readonly isReady: boolean;
  /** What is behind it, for `awaitTransaction` and listeners; null on a server. */
  readonly subscription: Subscription<R> | null;
}

const IDLE_TIMEOUT = 1000; // ms for which a subscription that no component uses is kept

/** What a component sees before there is a subscription, and on a server. */
export const BEFORE: Rows<never> = {
  rows: [],
  state: { status: "connecting", reason: null, retryAt: null, attempt: 0, role: "alone" },
  isReady: false,
  subscription: null,
};

/** One subscription, for all components that want the same. */
class Entry {
  readonly #subscription: Subscription;
  readonly #onIdle: () => void;
  readonly #listeners = new Set<() => void>();
  #seen: Rows | null = null;
  #isReady = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: SubscribeOptions, onIdle: () => void) {
    this.#onIdle = onIdle;
    this.#subscription = subscribe(options);
    this.#subscription.on("rows", () => this.#notify());
    this.#subscription.on("state", ({ status }) => {
      this.#isReady ||= status === "live";
      this.#notify();
    });
  }

  /** The same object until something changes. */
  get seen(): Rows {
    const { list: rows, state } = this.#subscription;
    if (this.#seen?.rows === rows && this.#seen.state === state) return this.#seen;
    return (this.#seen = { rows, state, isReady: this.#isReady, subscription: this.#subscription });
  }

  listen(listener: () => void): () => void {
    clearTimeout(this.#timer);
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (!this.#listeners.size) this.#timer = setTimeout(() => this.#close(), IDLE_TIMEOUT);
    };
  }

  #notify(): void {
    for (const listener of [...this.#listeners]) listener();
  }

  #close(): void {
    this.#onIdle();
    this.#subscription.close();
  }
}

/** Subscriptions by what they ask for. */
export class Registry {
  readonly #entries = new Map<string, Entry>();

  /** Follow what `key` stands for until the returned function is called; the first one connects. */
  listen(key: string, options: SubscribeOptions, listener: () => void): () => void {
    const entry = this.#entries.get(key) ?? new Entry(options, () => this.#entries.delete(key));
    this.#entries.set(key, entry);
    return entry.listen(listener);
  }

  read(key: string): Rows {
    return this.#entries.get(key)?.seen ?? BEFORE;
  }
}

/** Text that components have in common if they may share a subscription. */
export function keyFor(options: object): string {
  const entries = Object.entries(options).filter(([, value]) => typeof value !== "function");
  return JSON.stringify(entries.sort(([one], [other]) => (one < other ? -1 : 1)), plain);
}

function plain(_: string, value: unknown): unknown {
  return typeof value === "bigint" ? `${value}n` : value;
}
