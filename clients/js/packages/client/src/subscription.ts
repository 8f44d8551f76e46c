import { type DefaultBase, listed, streamAddress, ticketAddress } from "./address.js";
import { type ChangeData, changeFrom } from "./changes.js";
import { ticketOf } from "./credentials.js";
import { onComeback } from "./environment.js";
import { Listeners } from "./listeners.js";
import { type Passed, probe } from "./probe.js";
import { type Difference, keyOf, type RowData, Rows } from "./rows.js";
import { groupOf, joined, newsOf, passOn } from "./sharing.js";
import { type Message, SILENCE, Stream } from "./stream.js";
import type { SharedState, Tabs, TabsHandlers } from "./tabs.js";
import { Transactions } from "./transactions.js";
import type {
  AwaitOptions,
  Change,
  Events,
  Operation,

  State,
  SubscribeOptions,
  Subscription,
} from "./types.js";

const OVERDUE = 2000; // ms after which a tab that should be connecting may have been put to sleep
const CHECK = 1000;
const NO_LOG = "the connection was lost, and these tables keep no log to resume from";
const NO_HEADERS = 'an EventSource cannot send headers: leave out transport: "eventsource"';
const NEW: State = { status: "connecting", reason: null, retryAt: null, attempt: 0, role: "alone" };

interface RefusedRow extends RowData {
  reason: string;
}

type AllEvents = { [E in keyof Events]: Events<any>[E] };

/** Rows of some tables, kept in step with a service. */
export class LiveSubscription<R extends object> implements Subscription<R> {
  readonly ready: Promise<Subscription<R>>;
  readonly #options: SubscribeOptions<R>;
  readonly #base: DefaultBase;
  readonly #address: string;
  readonly #rows: Rows;
  readonly #stream: Stream;
  readonly #listeners = new Listeners<AllEvents>();
  readonly #transactions = new Transactions((...asked) => this.#probe(...asked));
  #tabs: Tabs | null = null;
  #position: string | null;
  #state: State = NEW;
  #whole = false; // the maps are as of `position`
  #isFull = false; // they hold every row, since a snapshot filled them
  #wasLive = false;
  #isTouched = false;
  #settle!: { resolve(self: Subscription<R>): void; reject(error: Error): void };
  readonly #timer: ReturnType<typeof setInterval>;
  readonly #endComebacks: () => void;

  constructor(options: SubscribeOptions<R>, base: DefaultBase) {
    const { snapshot = true, after, maxRows = 10_000, transport, headers } = options;
    if (transport === "eventsource" && headers) throw new TypeError(NO_HEADERS);
    this.#options = { ...options, snapshot };
    this.#base = base;
    this.#address = streamAddress(options, base);
    this.#rows = new Rows(listed(options.tables), snapshot ? Infinity : maxRows);
    this.#position = after ?? null;
    this.#transactions.reached(this.#position);
    this.ready = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.ready.catch(() => undefined); // a caller that does not wait needs no rejection
    this.#listen(options);
    this.#stream = new Stream(options, {
      begins: () => this.#begin(),
      address: () => this.#wanted(),
      message: (message) => this.#handle(message),
      changed: (news) => this.#update(news),
    });
    this.#timer = setInterval(() => this.#check(), CHECK);
    this.#endComebacks = onComeback(() => this.#stream.hurry());
    const group = groupOf(this.#options, this.#address);
    this.#tabs = group === null ? null : joined(group, this.#sharing());
    if (!this.#tabs) void this.#stream.connect();
  }

  get rows(): ReadonlyMap<string, R> {
    return this.#rows.of(0) as ReadonlyMap<string, R>;
  }

  get list(): readonly R[] {
    return this.#rows.list as readonly R[];
  }

  get(key: object): R | undefined {
    return this.#rows.get(keyOf(key)) as R | undefined;
  }

  of<T extends object = R>(table: string): ReadonlyMap<string, T> | undefined {
    const index = listed(this.#options.tables).indexOf(table);
    return this.#rows.of(index) as ReadonlyMap<string, T> | undefined;
  }

  get position(): string | null {
    return this.#position;
  }

  get state(): State {
    return this.#state;
  }

  on<E extends keyof Events<R>>(event: E, listener: (value: Events<R>[E]) => void): () => void {
    return this.#listeners.add(event, listener as (value: AllEvents[E]) => void);
  }

  awaitTransaction(id: string | number | bigint, options?: AwaitOptions): Promise<void> {
    return this.#transactions.wait(id, options);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#endComebacks();
    this.#stream.close();
    this.#tabs?.close();
    this.#update({ status: "closed", reason: null, retryAt: null });
    this.#transactions.close();
    this.#listeners.clear();
    this.#settle.reject(new Error("the subscription was closed before it was live"));
  }

  #listen(options: SubscribeOptions<R>): void {
    this.on("change", (change) => options.onChange?.(change));
    this.on("snapshot", (subscription) => options.onSnapshot?.(subscription));
    this.on("reset", (reason) => options.onReset?.(reason));
    this.on("state", (state) => options.onState?.(state));
  }

  #check(): void {
    if (this.#tabs?.follows) this.#tabs.check();
    else this.#stream.check();
  }

  #sharing(): TabsHandlers {
    const as = (role: State["role"]) => this.#update({ role });
    return {
      lead: () => (as("leader"), void this.#stream.connect()),
      follow: () => (as("follower"), this.#stream.close()),
      alone: () => (as("alone"), (this.#tabs = null), void this.#stream.connect()),
      message: (message) => this.#receive(message),
      status: ({ role: _, ...state }) => this.#update(state),
      adopt: (state) => this.#adopt(state),
      state: () => (this.#whole ? this.#shared() : null),
      silence: () => (this.#state.status === "live" ? SILENCE * this.#stream.interval * 1000 : OVERDUE),
      isOverdue: () => this.#state.retryAt !== null && Date.now() - this.#state.retryAt > OVERDUE,
    };
  }

  #begin(): void {
    this.#rows.unstage();
    this.#confessGap();
    this.#whole = !this.#options.snapshot || Boolean(this.#position);
    if (!this.#whole) this.#transactions.beginsSnapshot();
  }

  async #probe(position: string, signal: AbortSignal): Promise<Passed | null> {
    if (this.#state.status !== "live") return null;
    return probe(await this.#wanted(position), this.#options, signal);
  }

  async #wanted(after = this.#position): Promise<string> {
    const target = new URL(this.#address);
    if (after) target.searchParams.set("after", after);
    else if (this.#options.snapshot) target.searchParams.set("snapshot", "true");
    const ticket = await ticketOf(this.#options, () => ticketAddress(this.#options.url, this.#base));
    if (ticket) target.searchParams.set("ticket", ticket);
    return target.href;
  }

  // Without a position and a snapshot, changes in between are lost.
  #confessGap(): void {
    if (!this.#wasLive || this.#position || this.#options.snapshot) return;
    this.#wasLive = false;
    this.#handle({ type: "reset", data: { reason: NO_LOG, continues: true }, id: "" });
  }

  #handle(message: Message): void {
    this.#receive(message);
    passOn(this.#tabs, message);
  }

  #receive({ type, data, id }: Message): void {
    if (type === "reset" && data["key"]) return this.#passBy(data as unknown as RefusedRow, id);
    if (type === "reset") return this.#reset(String(data["reason"]), data["continues"] === true);
    if (type === "snapshot") return this.#rows.stage(data as unknown as ChangeData);
    if (type === "heartbeat") this.#stream.interval = Number(data["interval"]) || this.#stream.interval;
    else if (type === "snapshot-end") this.#complete(this.#rows.swap());
    else this.#apply(type as Operation, data as unknown as ChangeData, id);
    // Half a snapshot cannot be resumed, so no position counts before its end.
    if (!this.#whole) return undefined;
    this.#moveTo(id);
    if (type === "heartbeat") this.#transactions.beat(id);
    return this.#update({ status: "live", reason: null, retryAt: null, attempt: 0 });
  }

  #moveTo(position: string): void {
    if (!position) return;
    this.#position = position;
    this.#transactions.reached(position);
  }

  #apply(operation: Operation, data: ChangeData, id: string): void {
    this.#transactions.saw(data.transaction_id);
    if (!data.key && operation !== "truncate") return this.#vague(data);
    const held = this.#rows.apply(operation, data);
    // A delete of what was never shown says nothing, where everything was shown.
    if (operation === "delete" && !held && this.#isFull) return undefined;
    this.#touch();
    return this.#emit(changeFrom({ ...data, operation }, held ?? null, id || null));
  }

  // One row cannot be shown, so it is not: to read the rows again would not help.
  #passBy({ reason, ...row }: RefusedRow, id: string): void {
    this.#call("reset", reason);
    const held = this.#whole ? this.#rows.apply("delete", row) : undefined;
    if (held) {
      this.#touch();
      this.#emit(changeFrom({ ...row, operation: "delete" }, held, id || null));
    }
    if (this.#whole) this.#moveTo(id);
  }

  // "Some rows changed": only reading them again tells which.
  #vague(data: ChangeData): void {
    if (this.#options.snapshot) return this.#reset(`many rows of ${data.table} changed at once`, true);
    return this.#emit(changeFrom(data, null, null));
  }

  #complete(differences: Difference[]): void {
    this.#whole = this.#isFull = true;
    this.#touch();
    for (const change of differences) this.#emit({ ...change, source: "snapshot", position: null });
    this.#transactions.completed();
    this.#call("snapshot", this);
  }

  #reset(reason: string, continues: boolean): void {
    this.#position = null;
    this.#transactions.reached(null);
    this.#call("reset", reason);
    if (this.#tabs?.follows || this.#state.status === "closed") return;
    if (this.#options.snapshot || !continues) this.#stream.restart(reason);
  }

  #shared(): SharedState {
    const rows = this.#options.snapshot ? this.#rows.contents() : null;
    const { interval } = this.#stream;
    return { rows, position: this.#position, interval, news: newsOf(this.#state) };
  }

  #adopt({ rows, position, interval, news }: SharedState): void {
    this.#position = position;
    this.#stream.interval = interval;
    if (rows) this.#complete(this.#rows.replace(rows));
    this.#whole = true;
    this.#transactions.reached(position);
    this.#update(news);
  }

  #emit(change: Change): void {
    this.#call("change", change as Change<any>);
  }

  // Listeners of rows are notified once for all changes that arrived together.
  #touch(): void {
    if (this.#isTouched) return;
    this.#isTouched = true;
    queueMicrotask(() => {
      this.#isTouched = false;
      this.#call("rows", this);
    });
  }

  #update(news: Partial<State>): void {
    const old = this.#state;
    const names = Object.keys(news) as (keyof State)[];
    if (old.status === "closed" || names.every((name) => old[name] === news[name])) return;
    this.#state = { ...old, ...news };
    const isLive = this.#state.status === "live";
    this.#wasLive ||= isLive;
    if (isLive) this.#settle.resolve(this);
    this.#tabs?.shareStatus(this.#state);
    this.#listeners.notify("state", this.#state);
  }

  #call<E extends Exclude<keyof Events, "state">>(event: E, value: AllEvents[E]): void {
    if (this.#state.status !== "closed") this.#listeners.notify(event, value);
  }
}

