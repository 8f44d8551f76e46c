// The box that builds a subscription: choose, copy the code for it, or run it right here.

import { changesUrl, subscribe } from "../client.js";
import { copy, h } from "./elements.js";
import { clock, keyText, value } from "./format.js";

const OPERATIONS = ["insert", "update", "delete", "truncate"];
const COMPARISONS = { eq: "=", neq: "≠", lt: "<", lte: "≤", gt: ">", gte: "≥", in: "one of", is: "is" };
const LINES = 200;

export class Builder {
  #form;
  #tables = [];
  #token = null;
  #running = null;
  #language = "curl";
  #table = h("select", { name: "table", "aria-label": "Table" });
  #pk = h("input", { name: "pk", placeholder: "any", spellcheck: "false", autocomplete: "off" });
  #column = h("select", { name: "column", "aria-label": "Column" });
  #comparison = h("select", { name: "comparison", "aria-label": "Comparison" });
  #content = h("input", { name: "content", placeholder: "value", "aria-label": "Value", spellcheck: "false", autocomplete: "off" });
  #snapshot = h("input", { type: "checkbox", name: "snapshot", checked: true });
  #code = h("pre", { tabindex: "0" });
  #run = h("button", { class: "primary", type: "submit" }, "Run");
  #said = h("span", { class: "said", "aria-live": "polite" });
  #lines = h("ol");
  #output = h("div", { class: "output", role: "log", "aria-live": "off", tabindex: "0", "aria-label": "What the subscription brings", hidden: true }, this.#lines);

  constructor(form) {
    this.#form = form;
    this.#comparison.append(...Object.entries(COMPARISONS).map(([name, sign]) => h("option", { value: name }, sign)));
    form.append(...this.#layout());
    form.addEventListener("input", () => this.#changed());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#stop();
      else this.#start();
    });
  }

  /** Offer these tables; `token` signs in, `withoutRows` says why the current rows cannot be had, if so. */
  offer(tables, token, withoutRows) {
    this.#token = token;
    if (withoutRows && !this.#snapshot.disabled) this.#snapshot.checked = false;
    this.#snapshot.disabled = Boolean(withoutRows);
    this.#snapshot.parentElement.title = withoutRows ?? "";
    const names = tables.filter((table) => ["log", "hint", "relay"].includes(table.capture)).map((table) => table.name);
    if (names.join() === this.#tables.map((table) => table.name).join()) return;
    const chosen = this.#table.value;
    this.#tables = tables.filter((table) => names.includes(table.name));
    this.#table.replaceChildren(...names.map((name) => h("option", { selected: name === chosen }, name)));
    this.#form.classList.toggle("idle", !names.length);
    this.#changed();
  }

  #layout() {
    const kinds = OPERATIONS.map((name) =>
      h("label", { class: `pick ${name}` }, h("input", { type: "checkbox", name: "operation", value: name, checked: true }), name),
    );
    const code = h("div", { class: "code" },
      h("div", { class: "tabs", role: "group", "aria-label": "Language of the example" },
        this.#tab("curl", "curl"), this.#tab("javascript", "JavaScript"),
        h("button", { class: "quiet copy", type: "button", onclick: (event) => copy(this.#code.textContent, event.currentTarget) }, "Copy")),
      this.#code,
    );
    return [
      h("div", { class: "fields" },
        h("label", {}, h("span", {}, "Table"), this.#table),
        h("label", {}, h("span", {}, "Key"), this.#pk),
        h("fieldset", { class: "where" }, h("legend", {}, "Where"), this.#column, this.#comparison, this.#content),
        h("fieldset", { class: "picks" }, h("legend", {}, "Changes"), ...kinds),
        h("label", { class: "pick" }, this.#snapshot, "the current rows first"),
        h("div", { class: "act" }, this.#run, this.#said),
      ),
      code,
      this.#output,
    ];
  }

  #tab(name, title) {
    const button = h("button", { type: "button", class: "quiet tab", "aria-pressed": name === this.#language }, title);
    button.addEventListener("click", () => {
      this.#language = name;
      for (const tab of button.parentElement.querySelectorAll(".tab")) tab.setAttribute("aria-pressed", tab === button);
      this.#show();
    });
    return button;
  }

  #changed() {
    const table = this.#tables.find(({ name }) => name === this.#table.value);
    const columns = Object.keys(table?.columns ?? {});
    if ([...this.#column.options].slice(1).map((option) => option.value).join() !== columns.join()) {
      this.#column.replaceChildren(h("option", { value: "" }, "any row"), ...columns.map((name) => h("option", {}, name)));
    }
    const isFiltered = Boolean(this.#column.value);
    this.#comparison.disabled = this.#content.disabled = !isFiltered;
    this.#show();
  }

  get #options() {
    const picked = [...this.#form.querySelectorAll("[name=operation]:checked")].map((box) => box.value);
    const pk = this.#pk.value.trim();
    const options = { tables: this.#table.value };
    if (pk) options.pk = pk.startsWith("[") ? [parsed(pk)] : pk;
    if (this.#column.value) options.where = `${this.#column.value}.${this.#comparison.value}.${this.#content.value}`;
    if (picked.length && picked.length < OPERATIONS.length) options.operations = picked;
    if (!this.#snapshot.checked) options.snapshot = false;
    return options;
  }

  #show() {
    const options = this.#options;
    this.#code.textContent = this.#language === "curl" ? curl(options, this.#token) : javascript(options, this.#token);
  }

  #start() {
    this.#output.hidden = false;
    this.#lines.replaceChildren();
    let number = 0;
    this.#running = subscribe({
      ...this.#options,
      share: false,
      ...(this.#token ? { token: this.#token } : {}),
      onChange: (change) => {
        number += 1;
        this.#line(change);
        this.#say(number);
      },
      onReset: (reason) => this.#write("reset", reason),
      onState: () => this.#say(number),
    });
    this.#run.textContent = "Stop";
    this.#say(number);
  }

  #stop() {
    this.#running?.close();
    this.#running = null;
    this.#run.textContent = "Run";
    this.#said.textContent = "";
  }

  #say(number) {
    const { status, reason } = this.#running?.state ?? {};
    if (!status || status === "closed") return;
    this.#said.textContent = status === "live" ? `live, ${this.#running.rows.size} rows held, ${number} changes` : `${status}${reason ? `: ${reason}` : ""}`;
  }

  #line({ operation, key, row, old, changed, source }) {
    const shown = operation === "update" && changed && row ? Object.fromEntries(changed.map((name) => [name, row[name]])) : (row ?? old);
    this.#write(source === "snapshot" ? "row" : operation, `${keyText(key)}  ${value(shown, 400)}`);
  }

  #write(kind, line) {
    this.#lines.prepend(h("li", { class: kind }, h("time", {}, clock(Date.now())), h("b", {}, kind), h("span", {}, line)));
    while (this.#lines.children.length > LINES) this.#lines.lastElementChild.remove();
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function curl(options, token) {
  const address = new URL(changesUrl(options));
  if (options.snapshot !== false) address.searchParams.set("snapshot", "true");
  const sign = token ? ' \\\n  -H "Authorization: Bearer $ROWSIGNAL_TOKEN"' : "";
  return `curl -N '${address.href.replaceAll("'", "%27")}'${sign}`;
}

function javascript(options, token) {
  const lines = Object.entries(options).map(([name, content]) => `  ${name}: ${JSON.stringify(content)},`);
  const sign = token ? ["  token: () => fetchToken(),"] : [];
  return [
    `import { subscribe } from "${new URL("../client.js", import.meta.url)}";`,
    "",
    "const live = subscribe({",
    ...lines,
    ...sign,
    "  onChange({ operation, key, old, row }) {",
    "    console.log(operation, key, old, row);",
    "  },",
    "});",
  ].join("\n");
}
