import { isVisible } from "./environment.js";
import type { Contents } from "./rows.js";
import type { Message } from "./stream.js";
import type { State } from "./types.js";

/** Everything a tab needs to go on from where another one is. */
export interface SharedState {
  rows: Contents | null;
  position: string | null;
  interval: number;
  news: Partial<State>;
}

export interface TabsHandlers {
  lead(): void;
  follow(): void;
  alone(): void;
  message(message: Message): void;
  status(state: State): void;
  adopt(state: SharedState): void;
  state(): SharedState | null;
  /** Milliseconds for which a leader may be silent. */
  silence(): number;
  isOverdue(): boolean;
}

type Kind = "event" | "state" | "status" | "ping" | "pong" | "hello" | "start" | "election";

interface Post {
  kind: Kind;
  term: number;
  n: number;
  message?: Message;
  state?: SharedState;
  status?: State;
}

/**
 * One tab leads and holds the stream, the others follow over a BroadcastChannel. The lock says
 * which one leads and goes with its tab. `n` counts events in one order for all tabs, across
 * leaders; `term` is later for each leader, so that a deposed one is not listened to.
 */
export class Tabs {
  leads = false;
  readonly #name: string;
  readonly #handlers: TabsHandlers;
  readonly #channel: BroadcastChannel;
  #release: (() => void) | null = null;
  #pending: AbortController | null = null;
  #closed = false;
  #started = false;
  #synced = false;
  #asked = false;
  #arrivedAt = Date.now();
  #term = 0;
  #n = 0;

  constructor(name: string, handlers: TabsHandlers) {
    this.#name = name;
    this.#handlers = handlers;
    if (!navigator.locks) throw new TypeError("there are no locks here");
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => (this.leads ? this.#answer(data) : this.#obey(data));
    this.#request({ ifAvailable: true }, 0);
  }

  get follows(): boolean {
    return !this.leads;
  }

  forward(message: Message): void {
    this.#n += 1;
    this.#post("event", { message });
  }

  /** Let a snapshot count as an event: all tabs take it over. */
  renew(): void {
    this.#n += 1;
    this.#shareState();
  }

  shareStatus(status: State): void {
    if (this.leads) this.#post("status", { status });
  }

  /** Depose a leader that does not answer, or sleeps: such tabs keep their lock. */
  check(): void {
    const silent = Date.now() - this.#arrivedAt - this.#handlers.silence();
    const isNeeded = isVisible() && this.#handlers.isOverdue();
    if ((silent > 1000 && this.#asked) || isNeeded) this.#depose();
    else if (silent > 0 && !this.#asked) {
      this.#asked = true;
      this.#post("ping");
    }
  }

  close(): void {
    this.#closed = true;
    this.leads = false;
    this.#pending?.abort();
    this.#release?.();
    this.#channel.close();
  }

  #shareState(): void {
    const state = this.#handlers.state();
    if (this.leads && state) this.#post("state", { state });
  }

  #depose(): void {
    this.#pending?.abort();
    this.#arrivedAt = Date.now();
    this.#request({ steal: true }, 100);
  }

  #post(kind: Kind, content: Partial<Post> = {}): void {
    if (!this.#closed) this.#channel.postMessage({ kind, term: this.#term, n: this.#n, ...content });
  }

  #request(options: LockOptions, pause: number): void {
    const granted = (lock: Lock | null) => (lock ? this.#lead(pause) : this.#follow());
    navigator.locks.request(this.#name, options, granted).catch((error: Error) => {
      if (error.name !== "AbortError") this.#handlers.alone();
      else if (this.leads) this.#follow();
    });
  }

  #follow(): void {
    if (this.#closed) return;
    this.leads = this.#started = this.#synced = this.#asked = false;
    this.#arrivedAt = Date.now();
    this.#pending = new AbortController();
    this.#handlers.follow();
    this.#post("hello");
    this.#request({ signal: this.#pending.signal }, 100);
  }

  // The last leader may have passed on more than this tab received: ask the others first.
  #lead(pause: number): Promise<void> | undefined {
    if (this.#closed) return undefined;
    this.leads = true;
    this.#term = Math.max(Date.now(), this.#term + 1);
    if (pause) this.#post("election");
    setTimeout(() => this.#start(), pause);
    return new Promise((resolve) => (this.#release = resolve));
  }

  #start(): void {
    if (!this.leads) return;
    this.#started = true;
    this.#post("start");
    this.#handlers.lead();
  }

  #answer({ kind, n, state }: Post): void {
    if (kind === "ping") this.#post("pong");
    else if (kind === "hello" && this.#started) this.#shareState();
    else if (kind === "state" && !this.#started && n > this.#n) this.#take(n, state!);
  }

  #obey({ kind, term, n, state, status, message }: Post): void {
    if (kind === "hello" || kind === "ping" || term < this.#term) return;
    this.#term = term;
    this.#arrivedAt = Date.now();
    this.#asked = false;
    if (kind === "election") this.#concede(n);
    else if (kind === "start" && n !== this.#n) this.#resync();
    else if (kind === "state" && (n > this.#n || !this.#synced)) this.#take(n, state!);
    else if (kind === "event" && this.#synced) this.#step(n, message!);
    else if (kind === "status" && this.#synced) this.#handlers.status(status!);
  }

  #concede(n: number): void {
    const state = this.#synced && this.#n > n && this.#handlers.state();
    if (state) this.#post("state", { state });
  }

  #resync(): void {
    this.#synced = false;
    this.#post("hello");
  }

  #step(n: number, message: Message): void {
    if (n === this.#n + 1) {
      this.#n = n;
      this.#handlers.message(message);
    } else if (n > this.#n) this.#resync();
  }

  #take(n: number, state: SharedState): void {
    this.#n = n;
    this.#synced = true;
    this.#handlers.adopt(state);
  }
}
