// Row changes of a rowsignal service, kept as live maps of rows. No dependency; types in client.d.ts.

const EVENTS = [
  "insert", "update", "delete", "truncate", "snapshot", "snapshot-end", "heartbeat", "reset", "bye",
];
const REFUSALS = [401, 403, 404, 422];
const SILENCE = 2.5; // heartbeats that may stay away before a connection counts as dead
const OVERDUE = 2000; // ms after which a tab that should be connecting may have been put to sleep
const SETTLED = 10_000; // ms a connection must have lived for the next failure to count as the first

/** Follow tables: the maps hold their rows, `onChange` hears what changes. */
export function subscribe(options) {
  return new Subscription(options);
}

/** Text that identifies a row within its table: the key of the maps. */
export function keyOf(key) {
  return JSON.stringify(Object.values(key));
}

/** Address of the stream that `options` ask for, without position, snapshot and ticket. */
export function changesUrl({ url, tables, pk, where, columns, operations, conflate }) {
  const names = listed(tables);
  const path = names.length === 1 ? `changes/${encodeURIComponent(names[0])}` : "changes";
  const target = new URL(path, baseOf(url));
  const add = (name, values) => values.forEach((value) => target.searchParams.append(name, value));
  if (names.length > 1) add("table", names);
  add("pk", qualified(names, pk, (key) => (Array.isArray(key) ? JSON.stringify(key) : String(key))));
  add("where", qualified(names, where, String));
  add("columns", qualified(names, columns, String));
  if (operations) add("operations", [listed(operations).join(",")]);
  if (conflate) add("conflate", ["true"]);
  return target.href;
}

function baseOf(url) {
  const base = url ? new URL(url, document.baseURI) : new URL("v1/", import.meta.url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

function listed(value) {
  if (value === undefined || value === null) return [];
  return Array.isArray(value) ? value : [value];
}

// A list is for the one table; with several, an object says which table each value is for.
function qualified(names, values, text) {
  if (values === null || typeof values !== "object" || Array.isArray(values)) {
    return listed(values).map(text);
  }
  const prefix = (name) => (names.length > 1 ? `${name}:` : "");
  return Object.entries(values).flatMap(([name, items]) =>
    listed(items).map((item) => prefix(name) + text(item)),
  );
}

class Subscription {
  #options;
  #address;
  #rows;
  #stream;
  #tabs = null;
  #whole = false; // the maps are as of `position`
  #isFull = false; // they hold every row, since a snapshot filled them
  #wasLive = false;
  #settle;
  #timer;
  #hurry = () => document.visibilityState === "visible" && this.#stream.hurry();

  constructor(options) {
    const { snapshot = true, share = !(options.ticket || options.token) } = options;
    this.#options = { ...options, snapshot };
    this.#address = changesUrl(options);
    this.#rows = new Rows(listed(options.tables), snapshot ? Infinity : (options.maxRows ?? 10_000));
    this.position = options.after ?? null;
    this.state = { status: "connecting", reason: null, retryAt: null, attempt: 0, role: "alone" };
    this.ready = new Promise((resolve) => (this.#settle = resolve));
    this.#stream = new Stream(options, {
      address: () => this.#wanted(),
      heard: (message) => this.#hear(message),
      changed: (state) => this.#tell(state),
    });
    this.#timer = setInterval(() => (this.#tabs?.follows ? this.#tabs : this.#stream).check(), 1000);
    addEventListener("online", this.#hurry);
    addEventListener("pageshow", this.#hurry);
    document.addEventListener("visibilitychange", this.#hurry);
    // Who brings a position stands elsewhere than the other tabs.
    if (share && !options.after) this.#tabs = this.#join(share === true ? "" : share);
    if (!this.#tabs) this.#stream.connect();
  }

  /** Rows of the first table, by `keyOf(key)`. */
  get rows() {
    return this.#rows.of(0);
  }

  /** Rows of one of the tables, by `keyOf(key)`. */
  of(table) {
    return this.#rows.of(listed(this.#options.tables).indexOf(table));
  }

  /** End it for good: no callback comes afterwards. */
  close() {
    clearInterval(this.#timer);
    removeEventListener("online", this.#hurry);
    removeEventListener("pageshow", this.#hurry);
    document.removeEventListener("visibilitychange", this.#hurry);
    this.#stream.close();
    this.#tabs?.close();
    this.#tell({ status: "closed", reason: null, retryAt: null });
  }

  #join(group) {
    const name = `rowsignal ${group} ${this.#options.snapshot} ${this.#address}`;
    const role = (role, then) => () => (this.#tell({ role }), then());
    try {
      return new Tabs(name, {
        lead: role("leader", () => this.#stream.connect()),
        follow: role("follower", () => this.#stream.close()),
        alone: role("alone", () => ((this.#tabs = null), this.#stream.connect())),
        heard: (message) => this.#receive(message),
        status: ({ role, ...state }) => this.#tell(state),
        adopt: (state) => this.#adopt(state),
        state: () => (this.#whole ? this.#share() : null),
        silence: () => (this.state.status === "live" ? SILENCE * this.#stream.interval * 1000 : OVERDUE),
        isOverdue: () => this.state.retryAt !== null && Date.now() - this.state.retryAt > OVERDUE,
      });
    } catch {
      return null; // no BroadcastChannel or locks here, or not for this origin
    }
  }

  async #wanted() {
    const target = new URL(this.#address);
    this.#rows.unstage();
    this.#confessGap();
    this.#whole = !this.#options.snapshot || Boolean(this.position);
    if (this.position) target.searchParams.set("after", this.position);
    else if (this.#options.snapshot) target.searchParams.set("snapshot", "true");
    const ticket = await ticketOf(this.#options);
    if (ticket) target.searchParams.set("ticket", ticket);
    return target.href;
  }

  // Without a position and without a snapshot nobody can say what happened meanwhile.
  #confessGap() {
    if (!this.#wasLive || this.position || this.#options.snapshot) return;
    this.#wasLive = false;
    const reason = "the connection was lost, and these tables keep no log to resume from";
    this.#hear({ type: "reset", data: { reason, continues: true }, id: "" });
  }

  #hear(message) {
    const { type } = message;
    this.#receive(message);
    if (type === "snapshot-end") this.#tabs?.renew();
    else if (type !== "snapshot") this.#tabs?.forward(message);
  }

  #receive({ type, data, id }) {
    if (type === "reset") return this.#reset(data.reason, data.continues);
    if (type === "snapshot") return this.#rows.stage(data);
    if (type === "heartbeat") this.#stream.interval = data.interval ?? this.#stream.interval;
    else if (type === "snapshot-end") this.#complete(this.#rows.swap());
    else this.#apply(type, data, id);
    // Half a snapshot can not be resumed, so no position counts before its end.
    if (this.#whole && id) this.position = id;
    if (this.#whole) this.#tell({ status: "live", reason: null, retryAt: null, attempt: 0 });
    return undefined;
  }

  #apply(operation, data, id) {
    if (!data.key && operation !== "truncate") return this.#vague(data);
    const held = this.#rows.apply(operation, data);
    // A delete of what was never shown says nothing, where everything was shown.
    if (operation === "delete" && !held && this.#isFull) return undefined;
    return this.#emit({ ...changeFrom(data, held), operation, position: id || null });
  }

  // "Some rows changed": only looking again tells which.
  #vague(data) {
    if (this.#options.snapshot) return this.#reset(`many rows of ${data.table} changed at once`, true);
    return this.#emit({ ...changeFrom(data, null), operation: data.operation, position: null });
  }

  #complete(differences) {
    this.#whole = this.#isFull = true;
    const source = "snapshot";
    for (const change of differences) this.#emit({ ...change, source, position: null });
    this.#call("onSnapshot", this);
  }

  #reset(reason, continues = false) {
    this.position = null;
    this.#call("onReset", reason);
    if (this.#tabs?.follows || this.state.status === "closed") return;
    if (this.#options.snapshot || !continues) this.#stream.restart(reason);
  }

  #share() {
    const rows = this.#options.snapshot ? this.#rows.contents() : null;
    const { status, reason, retryAt } = this.state;
    return { rows, position: this.position, interval: this.#stream.interval, news: { status, reason, retryAt } };
  }

  #adopt({ rows, position, interval, news }) {
    this.position = position;
    this.#stream.interval = interval;
    if (rows) this.#complete(this.#rows.replace(rows));
    this.#whole = true;
    this.#tell(news);
  }

  #emit(change) {
    this.#call("onChange", { source: "stream", ...change });
  }

  #tell(news) {
    const old = this.state;
    if (old.status === "closed" || Object.keys(news).every((name) => old[name] === news[name])) return;
    this.state = { ...old, ...news };
    this.#wasLive ||= this.state.status === "live";
    if (this.state.status === "live") this.#settle(this);
    this.#tabs?.shareStatus(this.state);
    this.#call("onState", this.state);
  }

  #call(name, argument) {
    if (this.state.status === "closed" && name !== "onState") return;
    try {
      this.#options[name]?.(argument);
    } catch (error) {
      reportError(error); // a caller's mistake must not cost the next change
    }
  }
}

function changeFrom(data, held) {
  const { key, row = null } = data;
  const old = data.old ?? held ?? null;
  const changed = data.changed ?? (data.operation === "update" && old && row ? differing(old, row) : null);
  const table = `${data.schema}.${data.table}`;
  return { table, key, row, old, changed, capturedAt: data.captured_at, transactionId: data.transaction_id };
}

function differing(old, row) {
  const names = Object.keys({ ...old, ...row });
  return names.filter((name) => JSON.stringify(old[name]) !== JSON.stringify(row[name]));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function ticketOf({ ticket, token, url }) {
  if (ticket) return typeof ticket === "function" ? ticket() : ticket;
  if (!token) return null;
  const headers = { Authorization: `Bearer ${typeof token === "function" ? await token() : token}` };
  const answer = await fetch(new URL("tickets", baseOf(url)), { method: "POST", headers });
  if (!answer.ok) throw Object.assign(new Error(await complaint(answer)), { status: answer.status });
  return (await answer.json()).ticket;
}

async function complaint(answer) {
  const problem = await answer.json().catch(() => ({}));
  return problem.detail ?? problem.title ?? `the service answered ${answer.status}`;
}

// The rows of each table, and beside them those of a snapshot that is still arriving.
class Rows {
  #names;
  #limit;
  #keys; // names of each table's key columns
  #maps;
  #staged = null;

  constructor(names, limit) {
    this.#names = names;
    this.#limit = limit;
    this.#keys = names.map(() => []);
    this.#maps = this.#empty();
  }

  of(index) {
    return this.#maps[index];
  }

  contents() {
    return { keys: this.#keys, maps: this.#maps };
  }

  stage(data) {
    this.#staged ??= this.#empty();
    this.#staged[this.#place(data)].set(keyOf(data.key), data.row);
  }

  unstage() {
    this.#staged = null;
  }

  /** Let the snapshot take the place of what was there; return the differences. */
  swap() {
    const maps = this.#staged ?? this.#empty();
    this.#staged = null;
    return this.replace({ keys: this.#keys, maps });
  }

  /** Take over other contents, in our own maps; return the differences. */
  replace({ keys, maps }) {
    this.#keys = keys;
    return this.#maps.flatMap((map, index) => {
      const changes = differences(map, maps[index]);
      for (const { at, row } of changes) row ? map.set(at, row) : map.delete(at);
      return changes.map(({ at, ...change }) => ({ ...change, ...this.#named(index, at) }));
    });
  }

  /** Apply one change; return the row held before, if any. */
  apply(operation, data) {
    const map = this.#maps[this.#place(data)];
    if (operation === "truncate") return void map.clear();
    const at = keyOf(data.key);
    const held = map.get(at);
    map.delete(at);
    if (operation !== "delete" && data.row) map.set(at, data.row);
    if (map.size > this.#limit) map.delete(map.keys().next().value);
    return held;
  }

  #empty() {
    return this.#names.map(() => new Map());
  }

  #place({ schema, table, key }) {
    const found = this.#names.findIndex((name) => name === `${schema}.${table}` || name === table);
    const index = Math.max(found, 0);
    if (key) this.#keys[index] = Object.keys(key);
    return index;
  }

  #named(index, at) {
    const values = JSON.parse(at);
    const key = Object.fromEntries(this.#keys[index].map((name, place) => [name, values[place]]));
    return { table: this.#names[index], key };
  }
}

function differences(old, now) {
  const changes = [];
  const note = (operation, at, before, row, changed = null) =>
    changes.push({ operation, at, row, old: before, changed });
  for (const [at, row] of now) {
    const before = old.get(at);
    const changed = before && differing(before, row);
    if (!before) note("insert", at, null, row);
    else if (changed.length) note("update", at, before, row, changed);
  }
  for (const [at, row] of old) if (!now.has(at)) note("delete", at, row, null);
  return changes;
}

// One EventSource at a time, kept up: backoff, watchdog, and why it failed.
class Stream {
  #options;
  #handlers;
  #source = null;
  #turn = 0; // what an older turn still brings is not ours any more
  #attempt = 0;
  #openedAt = 0;
  #heardAt = 0;
  #timer;
  interval = 15; // s, until the first heartbeat says

  constructor(options, handlers) {
    this.#options = { retryDelays: [500, 30_000], connectTimeout: 20_000, ...options };
    this.#handlers = handlers;
  }

  async connect() {
    this.close();
    const turn = this.#turn;
    this.#openedAt = 0;
    this.#heardAt = Date.now();
    this.#handlers.changed({ status: "connecting", retryAt: null });
    try {
      const address = await this.#handlers.address();
      if (turn === this.#turn) this.#open(address, turn);
    } catch (error) {
      if (turn === this.#turn) this.#lost({ reason: error.message, status: error.status });
    }
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#turn += 1;
    this.#source?.close();
    this.#source = null;
  }

  /** Begin again after a reset: soon, and later each time. */
  restart(reason) {
    this.#lost({ reason });
  }

  /** Use a sign that the network may be back. */
  hurry() {
    if (this.#timer && !this.#source) this.connect();
    else this.check();
  }

  /** Give up a connection that has gone silent, as a half-open one does. */
  check() {
    const limit = this.#openedAt ? SILENCE * this.interval * 1000 : this.#options.connectTimeout;
    const silent = Date.now() - this.#heardAt;
    if (this.#source && silent > limit) this.#lost({ reason: `nothing was heard for ${Math.round(silent / 1000)} s` });
  }

  #open(address, turn) {
    this.#source = new EventSource(address, { withCredentials: Boolean(this.#options.withCredentials) });
    this.#source.onopen = () => (this.#openedAt = Date.now());
    // Reconnecting is ours in every case: the browser gives up for good after any answer but 200,
    // and would else repeat a used ticket, or a position that a reset has just taken away.
    this.#source.onerror = () => turn === this.#turn && this.#failed();
    for (const type of EVENTS) {
      this.#source.addEventListener(type, (event) => turn === this.#turn && this.#hear(type, event));
    }
  }

  #hear(type, event) {
    this.#heardAt = Date.now();
    const data = parsed(event.data);
    if (!data) this.#lost({ reason: `the service sent a ${type} that is not JSON` });
    else if (type === "bye") this.#lost({ reason: data.reason, pause: data.retry });
    else this.#handlers.heard({ type, data, id: event.lastEventId });
  }

  async #failed() {
    this.#source.close();
    if (this.#openedAt) return this.#lost({ reason: "the connection was lost" });
    const turn = this.#turn;
    const answer = this.#attempt % 4 ? {} : await this.#ask();
    if (turn === this.#turn) this.#lost({ reason: "the service can not be reached", ...answer });
    return undefined;
  }

  // An EventSource tells no status; a plain request for the same does.
  async #ask() {
    const abort = new AbortController();
    const credentials = this.#options.withCredentials ? "include" : "same-origin";
    try {
      const answer = await fetch(await this.#handlers.address(), { signal: abort.signal, credentials });
      if (answer.ok) return {};
      const later = Number(answer.headers.get("retry-after")) * 1000;
      return { reason: await complaint(answer), status: answer.status, pause: later || undefined };
    } catch {
      return {};
    } finally {
      abort.abort();
    }
  }

  #lost({ reason, pause, status }) {
    if (this.#openedAt && Date.now() - this.#openedAt > SETTLED) this.#attempt = 0;
    this.close();
    const [first, last] = this.#options.retryDelays;
    const refused = REFUSALS.includes(status);
    const bound = refused ? last : Math.min(last, first * 2 ** this.#attempt);
    const wait = pause ?? bound * (0.5 + Math.random() / 2);
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.connect(), wait);
    const retryAt = Date.now() + wait;
    this.#handlers.changed({ status: refused ? "refused" : "waiting", reason, retryAt, attempt: this.#attempt });
  }
}

// One tab leads and holds the stream, the others follow over a BroadcastChannel. The lock says who
// leads and goes with its tab. `n` counts events in one order for all tabs, across leaders; `term`
// is later for each leader, so that one who was deposed is not listened to.
class Tabs {
  #name;
  #handlers;
  #channel;
  #release = null;
  #pending = null;
  #closed = false;
  #started = false;
  #synced = false;
  #asked = false;
  #heardAt = Date.now();
  #term = 0;
  #n = 0;
  leads = false;

  constructor(name, handlers) {
    this.#name = name;
    this.#handlers = handlers;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => (this.leads ? this.#answer(data) : this.#obey(data));
    this.#request({ ifAvailable: true }, 0);
  }

  get follows() {
    return !this.leads;
  }

  forward(message) {
    this.#n += 1;
    this.#post("event", { message });
  }

  /** Let a snapshot count as an event: everybody takes it over. */
  renew() {
    this.#n += 1;
    this.shareState();
  }

  shareState() {
    const state = this.#handlers.state();
    if (this.leads && state) this.#post("state", { state });
  }

  shareStatus(status) {
    if (this.leads) this.#post("status", { status });
  }

  /** Depose a leader who does not answer, or sleeps: such tabs keep their lock. */
  check() {
    const silent = Date.now() - this.#heardAt - this.#handlers.silence();
    const isNeeded = document.visibilityState === "visible" && this.#handlers.isOverdue();
    if ((silent > 1000 && this.#asked) || isNeeded) this.#depose();
    else if (silent > 0 && !this.#asked) {
      this.#asked = true;
      this.#post("ping");
    }
  }

  #depose() {
    this.#pending?.abort();
    this.#heardAt = Date.now();
    this.#request({ steal: true }, 100);
  }

  close() {
    this.#closed = true;
    this.leads = false;
    this.#pending?.abort();
    this.#release?.();
    this.#channel.close();
  }

  #post(kind, content) {
    if (!this.#closed) this.#channel.postMessage({ kind, term: this.#term, n: this.#n, ...content });
  }

  #request(options, pause) {
    const granted = (lock) => (lock ? this.#lead(pause) : this.#follow());
    navigator.locks.request(this.#name, options, granted).catch((error) => {
      if (error.name !== "AbortError") this.#handlers.alone();
      else if (this.leads) this.#follow();
    });
  }

  #follow() {
    if (this.#closed) return;
    this.leads = this.#started = this.#synced = this.#asked = false;
    this.#heardAt = Date.now();
    this.#pending = new AbortController();
    this.#handlers.follow();
    this.#post("hello");
    this.#request({ signal: this.#pending.signal }, 100);
  }

  // The last leader may have told others more than us: ask before going on from where we are.
  #lead(pause) {
    if (this.#closed) return undefined;
    this.leads = true;
    this.#term = Math.max(Date.now(), this.#term + 1);
    if (pause) this.#post("election");
    setTimeout(() => this.#start(), pause);
    return new Promise((resolve) => (this.#release = resolve));
  }

  #start() {
    if (!this.leads) return;
    this.#started = true;
    this.#post("start");
    this.#handlers.lead();
  }

  #answer({ kind, n, state }) {
    if (kind === "ping") this.#post("pong");
    else if (kind === "hello" && this.#started) this.shareState();
    else if (kind === "state" && !this.#started && n > this.#n) this.#take(n, state);
  }

  #obey({ kind, term, n, state, status, message }) {
    if (kind === "hello" || kind === "ping" || term < this.#term) return;
    this.#term = term;
    this.#heardAt = Date.now();
    this.#asked = false;
    if (kind === "election") this.#concede(n);
    else if (kind === "start" && n !== this.#n) this.#resync();
    else if (kind === "state" && (n > this.#n || !this.#synced)) this.#take(n, state);
    else if (kind === "event" && this.#synced) this.#step(n, message);
    else if (kind === "status" && this.#synced) this.#handlers.status(status);
  }

  #concede(n) {
    const state = this.#synced && this.#n > n && this.#handlers.state();
    if (state) this.#post("state", { state });
  }

  #resync() {
    this.#synced = false;
    this.#post("hello");
  }

  #step(n, message) {
    if (n === this.#n + 1) {
      this.#n = n;
      this.#handlers.heard(message);
    } else if (n > this.#n) this.#resync();
  }

  #take(n, state) {
    this.#n = n;
    this.#synced = true;
    this.#handlers.adopt(state);
  }
}
