// One change in full: its values before and after, the row now, its past, its transaction, code for it.

import { ask, isNamed, keyPath } from "./api.js";
import { fromLog, KINDS, subject, timeOf, values } from "./changes.js";
import { copy, h, id } from "./elements.js";
import { keyText, precise } from "./format.js";
import { follow, link } from "./links.js";
import { snippets } from "./snippets.js";

const ROW_GONE = "There is no such row now, or it is not shown to you.";

export class Inspector {
  #dialog = id("inspector");
  #body = id("inspector-body");
  #language = "curl";
  #turn = 0; // answers of an earlier change are not for the one that is shown
  #tokenOf;
  #missingOf;

  /** `tokenOf()` is what signs in, `missingOf()` says why there is no history, if there is none. */
  constructor(tokenOf, missingOf) {
    this.#tokenOf = tokenOf;
    this.#missingOf = missingOf;
    id("inspector-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", ({ target }) => target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => {
      this.#turn += 1;
      link("row", "");
    });
  }

  /** Open what the address names, as soon as the service can be asked. */
  begin() {
    follow("row", (place) => (place ? this.#openLinked(place) : this.#dialog.close()));
  }

  /** Show a change. */
  open(change) {
    const { operation, table, key } = change;
    const turn = (this.#turn += 1);
    id("inspector-title").replaceChildren(
      h("span", { class: `sign ${operation}`, "aria-hidden": "true" }, KINDS[operation]), `${operation} `, ...subject(change).filter(Boolean));
    const [row, past, together] = [h("div"), h("div"), h("div")];
    const missing = this.#missingOf();
    const time = timeOf(change);
    this.#body.replaceChildren(
      h("p", { class: "when" }, h("time", { datetime: new Date(time).toISOString() }, `${new Date(time).toDateString()}, ${precise(time)}`)),
      part("Change", comparison(change)),
      ...(missing ? [part("History", h("p", { class: "empty" }, missing))] : []),
      ...(isNamed(key) && !missing ? [part("Row now", row), part("History", past)] : []),
      ...(change.transactionId && !missing ? [part(`Transaction ${change.transactionId}`, together)] : []),
      ...(isNamed(key) ? [part("Elsewhere", this.#code(change))] : []),
    );
    if (isNamed(key)) link("row", `${encodeURIComponent(table)}/${keyPath(key)}`);
    if (isNamed(key) && !missing) {
      this.#fill([row, past], turn, `v1/history/${encodeURIComponent(table)}/${keyPath(key)}`, (answer) => [
        this.#rowNow(answer.row), this.#list(answer, "Nothing of this row is in the log.", isOther(change))]);
    }
    if (change.transactionId && !missing) {
      this.#fill([together], turn, `v1/transactions/${encodeURIComponent(change.transactionId)}`, (answer) => [
        this.#list(answer, "Its changes are not in the log.", isOther(change), "This change is the only one that is shown to you.")]);
    }
    if (this.#dialog.open) this.#body.focus();
    else this.#dialog.showModal();
    this.#body.scrollTop = 0;
  }

  async #openLinked(place) {
    const parts = rowParts(place);
    if (!parts) return this.#say("A row", "This link names no row.");
    const title = parts.join(" ");
    const missing = this.#missingOf();
    if (missing) return this.#say(title, missing);
    try {
      const { changes } = await ask(`v1/history/${parts.map(encodeURIComponent).join("/")}`, { token: this.#tokenOf() });
      if (changes.length) return this.open(fromLog(changes[0]));
      this.#say(title, "Nothing of this row is in the log.");
    } catch (refusal) {
      this.#say(title, refusal.message);
    }
  }

  #say(title, sentence) {
    id("inspector-title").textContent = title;
    this.#body.replaceChildren(h("p", { class: "empty" }, sentence));
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  async #fill(places, turn, path, show) {
    for (const place of places) place.replaceChildren(h("p", { class: "empty" }, "Looking it up."));
    let shown;
    try {
      shown = show(await ask(path, { token: this.#tokenOf() }));
    } catch (refusal) {
      shown = places.map(() => h("p", { class: "empty" }, refusal.message));
    }
    if (turn !== this.#turn) return;
    places.forEach((place, index) => place.replaceChildren(shown[index]));
  }

  #rowNow(row) {
    if (!row) return h("p", { class: "empty" }, ROW_GONE);
    return copied(JSON.stringify(row, null, 2), "The row as JSON");
  }

  // Past changes, each of which opens in its turn.
  #list({ changes, is_complete: isComplete }, nothing, isWanted, only = nothing) {
    const shown = changes.map(fromLog).filter(isWanted);
    const rows = shown.map((change) =>
      h("li", { class: change.operation },
        h("span", { class: "sign", "aria-hidden": "true" }, KINDS[change.operation]),
        h("button", { class: "what", type: "button", onclick: () => this.open(change) },
          h("span", { class: "hidden" }, `${change.operation} `), ...subject(change).filter(Boolean)),
        h("p", { class: "values" }, ...values(change)),
        h("time", {}, precise(timeOf(change)))));
    const remark = isComplete ? "" : "The log holds more than was searched.";
    if (!rows.length) return h("p", { class: "empty" }, changes.length ? only : nothing, remark ? ` ${remark}` : "");
    return h("div", {}, h("ol", { class: "entries" }, ...rows), remark ? h("p", { class: "note" }, remark) : null);
  }

  #code(change) {
    const texts = snippets(change, this.#tokenOf());
    const code = h("pre", { tabindex: "0", role: "region", "aria-label": "Code for this row" });
    const tabs = Object.keys(texts).map((name) => h("button", { type: "button", class: "quiet tab" }, name));
    const choose = (name) => {
      this.#language = name;
      code.textContent = texts[name];
      for (const tab of tabs) tab.setAttribute("aria-pressed", tab.textContent === name);
    };
    for (const tab of tabs) tab.addEventListener("click", () => choose(tab.textContent));
    choose(this.#language);
    const button = h("button", { class: "quiet copy", type: "button", onclick: () => copy(code.textContent, button) }, "Copy");
    return h("div", { class: "code" }, h("div", { class: "tabs", role: "group", "aria-label": "Language" }, ...tabs, button), code);
  }
}

// Table and key of a link; null where it would lead to anything but one row.
function rowParts(place) {
  try {
    const parts = place.split("/").map(decodeURIComponent);
    const isRow = parts.length === 2 && parts.every((part) => part && ![".", ".."].includes(part));
    return isRow ? parts : null;
  } catch {
    return null; // half an escape
  }
}

function part(title, ...content) {
  return h("section", {}, h("h3", {}, title), ...content);
}

function copied(text, label) {
  const button = h("button", { class: "quiet copy", type: "button", onclick: () => copy(text, button) }, "Copy");
  return h("div", { class: "code" }, button, h("pre", { tabindex: "0", role: "region", "aria-label": label }, text));
}

// What is listed beside a change is not that change again.
function isOther(change) {
  const mine = identity(change);
  return (other) => identity(other) !== mine;
}

function identity({ operation, table, key, transactionId, capturedAt }) {
  return [operation, table, keyText(key), transactionId, capturedAt].join(" ");
}

/** A table of all known columns: before, after, and which of them differ. */
function comparison({ operation, row, old, changed, key, table }) {
  if (operation === "truncate") return h("p", {}, "Every row of the table was removed.");
  const columns = [...new Set([...Object.keys(old ?? {}), ...Object.keys(row ?? {})])];
  if (!columns.length) return h("p", { class: "empty" }, withoutValues({ operation, changed, key, table }));
  const differs = (name) => changed?.includes(name) ?? false;
  const lines = columns.map((name) =>
    h("tr", { class: differs(name) ? "differs" : "" },
      h("th", { scope: "row" }, name),
      operation === "insert" ? null : h("td", {}, content(old, name, "del", operation === "delete" || differs(name))),
      operation === "delete" ? null : h("td", {}, content(row, name, "ins", differs(name)))));
  const heads = ["Column", operation === "insert" ? null : "Before", operation === "delete" ? null : "After"];
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Values before and after" },
    h("table", { class: "diff" },
      h("thead", {}, h("tr", {}, ...heads.filter(Boolean).map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, ...lines)));
}

function content(values, name, tag, isMarked) {
  if (!values || !(name in values)) return h("span", { class: "unknown" }, "not in the log");
  const text = values[name] === null ? "null" : typeof values[name] === "string" ? values[name] : JSON.stringify(values[name]);
  return isMarked ? h(tag, {}, text) : text;
}

function withoutValues({ operation, changed, key, table }) {
  if (!key) return "Many rows may have changed at once.";
  const columns = changed?.length ? ` It changed ${changed.join(", ")}.` : "";
  return `The log keeps no values of this table, so only the ${operation} itself is known.${columns} To keep them: rowsignal install --log --row-values ${table}`;
}
