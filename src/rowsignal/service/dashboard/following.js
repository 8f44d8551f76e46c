// The page's own subscription, made of the same client that everybody gets.

import { subscribe } from "../client.js";

const MOST_TABLES = 50; // of one stream
const MOST_STREAMS = 3; // browsers open six connections to a host over HTTP/1.1
const SNAPSHOT_ROWS = 5000; // above, the page does without the rows it has not seen change

/** Keep subscribed to whatever tables the service offers. */
export class Following {
  #handlers;
  #groups = new Map();

  constructor(handlers) {
    this.#handlers = handlers;
  }

  /** Follow the tables of this status; `token` signs in. */
  update(status, token) {
    const wanted = new Map(groups(status.tables).map((tables) => [names(tables).join(" "), tables]));
    for (const [name, subscription] of this.#groups) {
      if (!wanted.has(name)) this.#drop(name, subscription);
    }
    for (const [name, tables] of wanted) {
      if (!this.#groups.has(name)) this.#groups.set(name, this.#follow(tables, token));
    }
  }

  /** How many tables are followed. */
  get count() {
    return [...this.#groups.keys()].reduce((sum, name) => sum + name.split(" ").length, 0);
  }

  /** The least lively state of all, for one lamp. */
  get state() {
    const states = [...this.#groups.values()].map((subscription) => subscription.state);
    return states.find((state) => state.status !== "live") ?? states[0] ?? null;
  }

  #drop(name, subscription) {
    this.#groups.delete(name);
    subscription.close();
  }

  #follow(tables, token) {
    let isFirst = true;
    const rows = tables.reduce((sum, table) => sum + (table.estimated_rows ?? SNAPSHOT_ROWS + 1), 0);
    return subscribe({
      tables: names(tables),
      snapshot: rows <= SNAPSHOT_ROWS,
      ...(token ? { token } : {}),
      onChange: (change) => {
        if (change.source === "stream" || !isFirst) this.#handlers.onChange(change);
      },
      onSnapshot: () => (isFirst = false),
      onReset: (reason) => this.#handlers.onReset(reason),
      onState: () => this.#handlers.onState(this.state),
    });
  }
}

// A table whose triggers do not fire would have the stream of all others refused.
// Tables with and without a log do not mix: a stream has positions only if all its tables have.
function groups(tables) {
  const captured = tables.filter((table) => !["missing", "disabled", "orphaned"].includes(table.trigger));
  const logged = captured.filter((table) => ["log", "relay"].includes(table.capture));
  const hinted = captured.filter((table) => table.capture === "hint");
  return [...parts(logged), ...parts(hinted)].slice(0, MOST_STREAMS);
}

function parts(tables) {
  const sorted = [...tables].sort((one, other) => (one.name < other.name ? -1 : 1));
  const count = Math.ceil(sorted.length / MOST_TABLES);
  return Array.from({ length: count }, (_, index) => sorted.slice(index * MOST_TABLES, (index + 1) * MOST_TABLES));
}

function names(tables) {
  return tables.map((table) => table.name).sort();
}
