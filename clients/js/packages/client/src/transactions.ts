import { hasPassed } from "./positions.js";
import type { Passed } from "./probe.js";
import type { AwaitOptions } from "./types.js";

const TIMEOUT = 30_000;
const REMEMBERED = 1000;
const PROBES = [300, 5000] as const; // ms before the first and between the last questions
const QUIET = 200; // ms after its last change in which a transaction's other changes would arrive

/** The stream did not pass a transaction in time. */
export class TransactionTimeoutError extends Error {
  override readonly name = "TransactionTimeoutError";

  constructor(id: bigint, milliseconds: number) {
    super(
      `transaction ${id} was not seen within ${milliseconds} ms: was it committed, on this database,` +
        " and did it return pg_current_xact_id()?",
    );
  }
}

type Probe = (position: string, signal: AbortSignal) => Promise<Passed | null>;

interface Wait {
  id: bigint;
  isSeen: boolean;
  precedesSnapshot: boolean;
  finish: (error?: unknown) => void;
}

/** Waits for transactions: what the stream has shown, and how far it has come. */
export class Transactions {
  #waits = new Set<Wait>();
  #seen = new Set<string>();
  #timer: ReturnType<typeof setTimeout> | null = null;
  #changedAt = 0;
  #position: string | null = null;
  #ended: Error | null = null;
  readonly #probe: Probe;
  readonly #ending = new AbortController();
  #probing: ReturnType<typeof setTimeout> | null = null;
  #pause: number = PROBES[0];

  /** `probe` asks the service how far it is after a position. */
  constructor(probe: Probe) {
    this.#probe = probe;
  }

  wait(id: string | number | bigint, { timeout = TIMEOUT, signal }: AwaitOptions = {}): Promise<void> {
    const number = numberOf(id);
    return new Promise((resolve, reject) => {
      const late = () => wait.finish(new TransactionTimeoutError(number, timeout));
      const aborted = () => wait.finish(signal!.reason);
      const timer = setTimeout(late, timeout);
      const finish = (error?: unknown) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
        this.#waits.delete(wait);
        if (error === undefined) resolve();
        else reject(error);
      };
      const wait = { id: number, isSeen: this.#seen.has(String(number)), precedesSnapshot: false, finish };
      this.#waits.add(wait);
      signal?.addEventListener("abort", aborted);
      if (signal?.aborted) aborted();
      else this.#begin(wait);
    });
  }

  /** Note that a snapshot is asked for, which will show what was committed before. */
  beginsSnapshot(): void {
    for (const wait of this.#waits) wait.precedesSnapshot = true;
  }

  /** Note that all rows are there. */
  completed(): void {
    this.#finish((wait) => wait.precedesSnapshot);
  }

  /** Note one change. */
  saw(id: unknown): void {
    const text = String(id);
    this.#changedAt = Date.now();
    this.#remember(text);
    for (const wait of this.#waits) wait.isSeen ||= String(wait.id) === text;
    this.#watchQuiet();
  }

  /** Note a heartbeat: it comes after all that was published before it. */
  beat(id: string): void {
    // The first heartbeat of a connection has no position, and what was missed is still to come.
    if (id || !this.#position) this.#finish((wait) => wait.isSeen);
  }

  /** Note how far the stream has come. */
  reached(position: string | null): void {
    this.#position = position;
    if (position) this.#finish((wait) => hasPassed(position, wait.id) === true);
  }

  /** End all waits, also those to come. */
  close(): void {
    this.#ended = new Error("the subscription was closed");
    this.#cancelQuiet();
    if (this.#probing !== null) clearTimeout(this.#probing);
    this.#ending.abort();
    for (const wait of [...this.#waits]) wait.finish(this.#ended);
  }

  #begin(wait: Wait): void {
    if (this.#ended) wait.finish(this.#ended);
    else if (this.#position && hasPassed(this.#position, wait.id)) wait.finish();
    else {
      this.#watchQuiet();
      this.#pause = PROBES[0];
      this.#probeLater();
    }
  }

  // A transaction that changed nothing in sight has no event, and heartbeats are rare: ask.
  #probeLater(): void {
    const hasUnseen = [...this.#waits].some((wait) => !wait.isSeen);
    if (this.#probing !== null || this.#ended || !hasUnseen) return;
    this.#probing = setTimeout(() => void this.#ask(), this.#pause);
    this.#pause = Math.min(PROBES[1], this.#pause * 2);
  }

  async #ask(): Promise<void> {
    const passed = this.#position ? await this.#probe(this.#position, this.#ending.signal).catch(() => null) : null;
    if (passed) this.#finish((wait) => !wait.isSeen && isOutOfSight(wait.id, passed));
    this.#probing = null;
    this.#probeLater();
  }

  #finish(isDone: (wait: Wait) => boolean): void {
    for (const wait of [...this.#waits]) if (isDone(wait)) wait.finish();
  }

  // Where a filter drops the last change of a batch, only the next heartbeat carries its end.
  #watchQuiet(): void {
    this.#cancelQuiet();
    if (![...this.#waits].some((wait) => wait.isSeen)) return;
    const left = Math.max(0, this.#changedAt + QUIET - Date.now());
    this.#timer = setTimeout(() => this.#finish((wait) => wait.isSeen), left);
  }

  #cancelQuiet(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #remember(id: string): void {
    this.#seen.add(id);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value!);
  }
}

function isOutOfSight(id: bigint, { position, transactions }: Passed): boolean {
  return !transactions.has(String(id)) && hasPassed(position, id) === true;
}

function numberOf(id: string | number | bigint): bigint {
  const text = String(id);
  if (/^\d+$/.test(text)) return BigInt(text);
  throw new TypeError(`${JSON.stringify(text)} is no transaction id: pass the text of pg_current_xact_id()`);
}
