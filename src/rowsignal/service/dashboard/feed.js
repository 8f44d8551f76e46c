// The live feed: newest first, the changes of a transaction together.

import { KINDS, searchable, subject, timeOf, values } from "./changes.js";
import { h, id } from "./elements.js";
import { clock, count, precise } from "./format.js";
import { follow, link } from "./links.js";

const SHOWN = 250;
const AT_ONCE = 12; // rows drawn together; of more, the rest is only counted
const PACE = 250; // ms between two drawings: nobody reads faster

export class Feed {
  #list = id("changes");
  #waiting = [];
  #skipped = 0;
  #hidden = new Set();
  #terms = [];
  #isPaused = false;
  #timer = null;
  #drawnAt = 0;
  #seen = new Set(); // transactions that came by stream
  #onOpen;

  /** `onOpen(change)` is called for a change that is pressed. */
  constructor(onOpen) {
    this.#onOpen = onOpen;
    id("kinds").append(...Object.keys(KINDS).map((kind) => this.#toggle(kind)));
    id("filter").addEventListener("input", (event) => this.#filter(event.target.value));
    id("pause").addEventListener("click", () => this.pause());
    addEventListener("keydown", (event) => this.#key(event));
    follow("q", (terms) => this.filter(terms));
    follow("hide", (kinds) => this.#hide(kinds.split(",")));
  }

  add(change) {
    if (change.transactionId) this.#seen.add(change.transactionId);
    this.#waiting.push({ at: Date.now(), ...change });
    if (this.#waiting.length > SHOWN) this.#skipped += this.#waiting.splice(0, this.#waiting.length - SHOWN).length;
    if (this.#isPaused) this.#label();
    else this.#schedule();
  }

  /** Show what the log has of the time before, newest first, below what came by stream. */
  fill(changes) {
    const older = changes.filter(({ transactionId }) => !this.#seen.has(transactionId));
    const room = SHOWN - this.#list.children.length;
    this.#list.append(...older.slice(0, Math.max(0, room)).map((change) => this.#row(change, "past")));
    this.#join();
    this.#explain();
  }

  /** Say something between the changes. */
  note(sentence) {
    this.#list.prepend(h("li", { class: "remark" }, h("time", {}, clock(Date.now())), sentence));
  }

  /** Show only changes with these words. */
  filter(terms) {
    id("filter").value = terms;
    this.#filter(terms);
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
    this.#forgetPast(fresh);
    const missed = this.#skipped + Math.max(0, fresh.length - AT_ONCE);
    this.#skipped = 0;
    this.#list.classList.toggle("rush", missed > 0);
    const rows = fresh.slice(-AT_ONCE).map((change) => this.#row(change));
    if (missed) rows.unshift(h("li", { class: "remark" }, `${count(missed)} more changes, too many to show`));
    this.#list.prepend(...rows.reverse());
    while (this.#list.children.length > SHOWN) this.#list.lastElementChild.remove();
    this.#join();
    this.#explain();
  }

  // What came from the log, and now by stream as well, is shown once.
  #forgetPast(fresh) {
    const came = new Set(fresh.map(({ transactionId }) => transactionId).filter(Boolean));
    for (const row of this.#list.querySelectorAll("li.past")) if (came.has(row.dataset.transaction)) row.remove();
  }

  // Neighbours of one transaction are drawn as a group, with their number at the first of them.
  #join() {
    const shown = [...this.#list.children].filter((row) => !row.hidden);
    for (let start = 0; start < shown.length; ) {
      const { transaction } = shown[start].dataset;
      let end = start + 1;
      while (transaction && end < shown.length && shown[end].dataset.transaction === transaction) end += 1;
      shown.slice(start, end).forEach((row, index) => mark(row, index, end - start));
      start = end;
    }
  }

  // An empty list says why it is empty.
  #explain() {
    const rows = [...this.#list.children];
    id("no-changes").hidden = rows.length > 0;
    id("no-hits").hidden = !rows.length || rows.some((row) => !row.hidden);
  }

  #row(change, ...classes) {
    const { operation } = change;
    const time = timeOf(change);
    const row = h(
      "li",
      { class: [operation, ...classes].join(" ") },
      h("span", { class: "sign", "aria-hidden": "true" }, KINDS[operation]),
      h("button", { class: "what", type: "button", onclick: () => this.#onOpen(change) },
        h("span", { class: "hidden" }, `${operation} `), ...subject(change).filter(Boolean)),
      h("p", { class: "values" }, ...values(change)),
      h("span", { class: "together" }),
      h("time", { datetime: new Date(time).toISOString() }, precise(time)),
    );
    row.dataset.text = searchable(change);
    if (change.transactionId) row.dataset.transaction = change.transactionId;
    row.hidden = !this.#wants(row);
    return row;
  }

  #wants(row) {
    const kind = Object.keys(KINDS).find((name) => row.classList.contains(name));
    return !this.#hidden.has(kind) && this.#terms.every((term) => (row.dataset.text ?? "").includes(term));
  }

  #filter(terms) {
    this.#terms = terms.toLowerCase().split(/\s+/).filter(Boolean);
    link("q", terms.trim());
    this.#sift();
  }

  #sift() {
    for (const row of this.#list.children) row.hidden = !this.#wants(row);
    this.#join();
    this.#explain();
  }

  #toggle(kind) {
    const button = h("button", { type: "button", class: `kind ${kind}`, "aria-pressed": "true", title: `Show ${kind}s`, "data-kind": kind },
      h("span", { "aria-hidden": "true" }, KINDS[kind]), h("span", { class: "hidden" }, kind));
    button.addEventListener("click", () => {
      const isShown = this.#hidden.has(kind);
      this.#hide([...this.#hidden, kind].filter((name) => name !== kind || !isShown));
    });
    return button;
  }

  #hide(kinds) {
    this.#hidden = new Set(kinds.filter((kind) => kind in KINDS));
    for (const button of id("kinds").children) button.setAttribute("aria-pressed", !this.#hidden.has(button.dataset.kind));
    link("hide", [...this.#hidden].join());
    this.#sift();
  }

  #key(event) {
    const typing = event.target.matches?.("input, select, textarea, button, summary") || document.querySelector("dialog[open]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") this.pause();
    else if (event.key === "/") id("filter").focus();
    else return;
    event.preventDefault();
  }
}

function mark(row, index, size) {
  row.classList.toggle("joined", size > 1);
  row.classList.toggle("first", size > 1 && index === 0);
  const together = row.querySelector(".together");
  if (together) together.textContent = size > 1 && index === 0 ? `${size} in one transaction` : "";
}
