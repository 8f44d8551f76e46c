import { type Failure, failureOf } from "./credentials.js";
import type { Frame } from "./frames.js";
import { EVENTS, openEventSource, openFetch, reasonOf, type Source } from "./sources.js";
import type { Connection, State } from "./types.js";

/** Heartbeats that may stay away before a connection counts as dead. */
export const SILENCE = 2.5;

const REFUSALS = [401, 403, 404, 422];
const SETTLED = 10_000; // ms a connection must have lived for the next failure to count as the first
const ASK_EVERY = 4; // attempts of an EventSource after which it is asked again why it fails
const DELAYS = [500, 30_000] as const;
const CONNECT_TIMEOUT = 20_000;

/** One event, its data decoded. */
export interface Message {
  type: string;
  data: Record<string, unknown>;
  id: string;
}

export interface StreamHandlers {
  /** Called once for each connection, before its address is made. */
  begins(): void;
  address(): Promise<string>;
  message(message: Message): void;
  changed(news: Partial<State>): void;
}

/** One connection at a time, kept up: backoff, watchdog, and why it failed. */
export class Stream {
  /** Seconds between heartbeats. */
  interval = 15;
  readonly #connection: Connection;
  readonly #handlers: StreamHandlers;
  readonly #delays: readonly [number, number];
  #source: Source | null = null;
  #turn = 0; // what an older turn still brings is not ours any more
  #attempt = 0;
  #timer: ReturnType<typeof setTimeout> | null = null;
  #openedAt = 0;
  #arrivedAt = 0;
  #isConnecting = false;

  constructor(connection: Connection, handlers: StreamHandlers) {
    this.#connection = connection;
    this.#handlers = handlers;
    this.#delays = connection.retryDelays ?? DELAYS;
  }

  async connect(): Promise<void> {
    this.close();
    const turn = this.#turn;
    this.#openedAt = 0;
    this.#arrivedAt = Date.now();
    this.#isConnecting = true;
    this.#handlers.changed({ status: "connecting", retryAt: null });
    if (turn !== this.#turn) return; // closed by a listener
    try {
      this.#handlers.begins();
      const address = await this.#handlers.address();
      if (turn === this.#turn) this.#source = this.#open(address, turn);
    } catch (error) {
      if (turn === this.#turn) this.#lost(failureOf(error));
    }
  }

  close(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#turn += 1;
    this.#isConnecting = false;
    this.#source?.close();
    this.#source = null;
  }

  /** Begin again after a reset: soon, and later each time. */
  restart(reason: string): void {
    this.#lost({ reason });
  }

  /** Use a sign that the network may be back. */
  hurry(): void {
    if (this.#timer !== null && !this.#source) void this.connect();
    else this.check();
  }

  /** Give up a connection that has gone silent, as a half-open one does. */
  check(): void {
    const patience = this.#connection.connectTimeout ?? CONNECT_TIMEOUT;
    const limit = this.#openedAt ? SILENCE * this.interval * 1000 : patience;
    const silent = Date.now() - this.#arrivedAt;
    const seconds = Math.round(silent / 1000);
    if (this.#isConnecting && silent > limit) this.#lost({ reason: `nothing arrived for ${seconds} s` });
  }

  #open(address: string, turn: number): Source {
    const now = <T extends unknown[]>(act: (...given: T) => void) => (...given: T) =>
      void (turn === this.#turn && act(...given));
    const handlers = {
      opened: now(() => (this.#openedAt = this.#arrivedAt = Date.now())),
      alive: now(() => (this.#arrivedAt = Date.now())),
      frame: now((frame: Frame) => this.#take(frame)),
      failed: now((failure: Failure) => this.#lost(failure)),
    };
    if (this.#connection.transport !== "eventsource") return openFetch(address, this.#connection, handlers);
    return openEventSource(address, this.#connection, handlers, () => this.#why());
  }

  async #why(): Promise<Failure> {
    if (this.#attempt % ASK_EVERY) return { reason: "the service cannot be reached" };
    return reasonOf(() => this.#handlers.address(), this.#connection);
  }

  #take({ type, data: text, id }: Frame): void {
    if (!EVENTS.includes(type)) return;
    const data = parsed(text);
    if (!data) this.#lost({ reason: `the service sent a ${type} that is not JSON` });
    else if (type === "bye") this.#lost({ reason: String(data["reason"]), pause: pauseOf(data["retry"]) });
    else this.#handlers.message({ type, data, id });
  }

  #lost({ reason, pause, status }: Failure): void {
    if (this.#openedAt && Date.now() - this.#openedAt > SETTLED) this.#attempt = 0;
    this.close();
    const [first, last] = this.#delays;
    const refused = status !== undefined && REFUSALS.includes(status);
    const bound = refused ? last : Math.min(last, first * 2 ** this.#attempt);
    const wait = pause ?? bound * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#timer = setTimeout(() => void this.connect(), wait);
    const retryAt = Date.now() + wait;
    this.#handlers.changed({ status: refused ? "refused" : "waiting", reason, retryAt, attempt: this.#attempt });
  }
}

function pauseOf(retry: unknown): number | undefined {
  return typeof retry === "number" ? retry : undefined;
}

function parsed(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" ? (value as Record<string, unknown> | null) : null;
  } catch {
    return null;
  }
}
