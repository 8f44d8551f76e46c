// What the service says of itself, asked every other second, with the rates that follow from it.

import { ask } from "./api.js";

const PERIOD = 2000;
const PATIENCE = 8000;
const HIDDEN_PERIOD = 15_000;
const KEPT = 300; // samples: ten minutes

/** Poll `/v1/status`; call `onNews(watch)` after each answer or failure. */
export class StatusWatch {
  #onNews;
  #before = new Map(); // last counters by worker: each keeps its own
  #timer;
  status = null;
  failure = null;
  seenAt = 0;
  skew = 0; // ms that the service's clock is ahead of ours
  rates = new Map(); // changes a second of each table, newest last
  samples = []; // {at, p50, p99, bytes}
  token = null;

  constructor(onNews) {
    this.#onNews = onNews;
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
  }

  /** The service's time. */
  get now() {
    return Date.now() + this.skew;
  }

  /** Changes a second over all tables. */
  get total() {
    return [...this.rates.values()].reduce((sum, rates) => sum + lately(rates), 0);
  }

  async ask() {
    clearTimeout(this.#timer);
    try {
      this.#take(await ask("v1/status", { token: this.token, timeout: PATIENCE }));
    } catch (refusal) {
      this.failure = { status: refusal.status ?? 0, reason: refusal.message };
    }
    this.#timer = setTimeout(() => this.ask(), document.hidden ? HIDDEN_PERIOD : PERIOD);
    this.#onNews(this);
  }

  #take(status) {
    this.failure = null;
    // While the database is away its name is still what it was.
    this.status = { ...status, database: status.database ?? this.status?.database };
    this.seenAt = Date.now();
    if (status.now) this.skew = Date.parse(status.now) - Date.now();
    const { p50 = null, p99 = null } = status.latency?.count ? status.latency : {};
    this.samples = [...this.samples, { at: Date.now(), p50, p99, bytes: (status.log ?? status.stream)?.bytes ?? null }].slice(-KEPT);
    this.#count(status);
  }

  #count({ pid, tables }) {
    const at = Date.parse(this.status.now ?? "") || Date.now();
    const now = new Map(tables.map((table) => [table.name, sum(table.changes)]));
    const before = this.#before.get(pid);
    this.#before.set(pid, { at, totals: now });
    if (!before || at <= before.at) return;
    for (const [name, total] of now) {
      const grown = Math.max(0, total - (before.totals.get(name) ?? total));
      const rates = this.rates.get(name) ?? [];
      this.rates.set(name, [...rates, (grown * 1000) / (at - before.at)].slice(-60));
    }
  }
}

function lately(rates) {
  const last = rates.slice(-3);
  return last.reduce((sum, rate) => sum + rate, 0) / (last.length || 1);
}

function sum(changes) {
  return Object.values(changes ?? {}).reduce((total, number) => total + number, 0);
}
