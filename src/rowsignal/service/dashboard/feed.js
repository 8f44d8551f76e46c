// The live feed: newest first, what was beside what is.

import { h, id } from "./elements.js";
import { clock, count, keyText, value } from "./format.js";

const SHOWN = 250;
const AT_ONCE = 12; // rows drawn together; of more, the rest is only counted
const PACE = 250; // ms between two drawings: nobody reads faster
const KINDS = { insert: "+", update: "Δ", delete: "−", truncate: "∅" };

export class Feed {
  #list = id("changes");
  #waiting = [];
  #skipped = 0;
  #hidden = new Set();
  #terms = [];
  #isPaused = false;
  #timer = null;
  #drawnAt = 0;

  constructor() {
    id("kinds").append(...Object.keys(KINDS).map((kind) => this.#toggle(kind)));
    id("filter").addEventListener("input", (event) => this.#filter(event.target.value));
    id("pause").addEventListener("click", () => this.pause());
    addEventListener("keydown", (event) => this.#key(event));
  }

  add(change) {
    this.#waiting.push({ at: Date.now(), ...change });
    if (this.#waiting.length > SHOWN) this.#skipped += this.#waiting.splice(0, this.#waiting.length - SHOWN).length;
    if (this.#isPaused) this.#label();
    else this.#schedule();
  }

  /** Say something between the changes. */
  note(sentence) {
    this.#list.prepend(h("li", { class: "remark" }, h("time", {}, clock(Date.now())), sentence));
  }

  pause() {
    this.#isPaused = !this.#isPaused;
    id("pause").setAttribute("aria-pressed", this.#isPaused);
    this.#label();
    if (!this.#isPaused) this.#schedule();
  }

  #label() {
    const number = this.#waiting.length + this.#skipped;
    const news = number ? `Resume, ${count(number)} new` : "Resume";
    id("pause").textContent = this.#isPaused ? news : "Pause";
  }

  #schedule() {
    const wait = Math.max(0, this.#drawnAt + PACE - Date.now());
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#drawnAt = Date.now();
      if (!this.#isPaused) this.#draw();
    }, wait);
  }

  #draw() {
    const fresh = this.#waiting.splice(0);
    const missed = this.#skipped + Math.max(0, fresh.length - AT_ONCE);
    this.#skipped = 0;
    this.#list.classList.toggle("rush", missed > 0);
    const rows = fresh.slice(-AT_ONCE).map((change) => this.#row(change));
    if (missed) rows.unshift(h("li", { class: "remark" }, `${count(missed)} more changes, too many to show`));
    this.#list.prepend(...rows.reverse());
    while (this.#list.children.length > SHOWN) this.#list.lastElementChild.remove();
    this.#explain();
  }

  // An empty list says why it is empty.
  #explain() {
    const rows = [...this.#list.children];
    id("no-changes").hidden = rows.length > 0;
    id("no-hits").hidden = !rows.length || rows.some((row) => !row.hidden);
  }

  #row(change) {
    const { operation, table, key, at } = change;
    const [schema, ...name] = table.split(".");
    const row = h(
      "li",
      { class: operation },
      h("span", { class: "sign", "aria-hidden": "true" }, KINDS[operation]),
      h("p", { class: "what" },
        h("span", { class: "hidden" }, `${operation} `),
        h("span", { class: "schema" }, `${schema}.`),
        h("b", {}, name.join(".")),
        key ? h("span", { class: "key" }, ` ${keyText(key)}`) : null,
      ),
      h("time", {}, clock(at)),
      h("p", { class: "values" }, ...values(change)),
    );
    row.dataset.text = searchable(change);
    row.hidden = !this.#wants(row);
    return row;
  }

  #wants(row) {
    const kind = Object.keys(KINDS).find((name) => row.classList.contains(name));
    return !this.#hidden.has(kind) && this.#terms.every((term) => (row.dataset.text ?? "").includes(term));
  }

  #filter(terms) {
    this.#terms = terms.toLowerCase().split(/\s+/).filter(Boolean);
    this.#sift();
  }

  #sift() {
    for (const row of this.#list.children) row.hidden = !this.#wants(row);
    this.#explain();
  }

  #toggle(kind) {
    const button = h("button", { type: "button", class: `kind ${kind}`, "aria-pressed": "true", title: `Show ${kind}s` },
      h("span", { "aria-hidden": "true" }, KINDS[kind]), h("span", { class: "hidden" }, kind));
    button.addEventListener("click", () => {
      const shown = this.#hidden.delete(kind);
      if (!shown) this.#hidden.add(kind);
      button.setAttribute("aria-pressed", shown);
      this.#sift();
    });
    return button;
  }

  #key(event) {
    const typing = event.target.matches?.("input, select, textarea, button, summary");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") this.pause();
    else if (event.key === "/") id("filter").focus();
    else return;
    event.preventDefault();
  }
}

function values({ operation, key, row, old, changed }) {
  if (operation === "truncate") return ["every row is gone"];
  if (operation === "delete") return listed(old, Object.keys(key ?? {}), "del");
  if (operation === "insert") return listed(row, Object.keys(key ?? {}), "span");
  if (!key) return ["many rows at once"];
  if (!changed?.length) return ["something changed"];
  return changed.flatMap((column) => difference(column, old, row));
}

function listed(row, keys, tag) {
  const shown = Object.entries(row ?? {}).filter(([name]) => !keys.includes(name)).slice(0, 5);
  return shown.map(([name, content]) => pair(name, h(tag, {}, value(content, 22))));
}

function difference(column, old, row) {
  const before = old && column in old ? [h("del", {}, value(old[column], 30)), h("span", { class: "to", "aria-hidden": "true" }, "→")] : [];
  return [pair(column, ...before, h("ins", {}, row ? value(row[column], 30) : "?"))];
}

function pair(name, ...content) {
  return h("span", { class: "pair" }, h("span", { class: "column" }, name), ...content);
}

function searchable({ operation, table, key, row, old, changed }) {
  const parts = [operation, table, ...Object.values(key ?? {}), ...(changed ?? []), ...Object.values(row ?? old ?? {})];
  return parts.map((part) => value(part, 200)).join(" ").toLowerCase();
}
