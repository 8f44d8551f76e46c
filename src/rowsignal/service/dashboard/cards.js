// The tables, by schema: how much happens in each, how many readers, whether its triggers are sound.

import { command, h, id, s, text } from "./elements.js";
import { ago, count, rate, several } from "./format.js";
import { follow, link } from "./links.js";
import { isBroken } from "./status_text.js";

const POINTS = 60;
const FEWEST = 15; // points across, as long as there are not more
const CAPTURE = { log: "logged", relay: "relayed", hint: "hints", none: "not captured", unknown: "" };

const FEW = 8; // tables that can be seen without a search
const AT_ONCE = 40; // rows: of more, the rest is a press away
const ORDERS = {
  trouble: (watch) => (one, other) => isBroken(other) - isBroken(one) || lately(watch, other) - lately(watch, one),
  rate: (watch) => (one, other) => lately(watch, other) - lately(watch, one),
  name: () => () => 0,
};

const cards = new Map(); // by the table's name
const groups = new Map(); // by the schema
let isAll = false;
let onPick = () => {};

/** Draw the tables anew into `place`, keeping the elements of those that stay. */
export function drawCards(place, watch) {
  const { tables } = watch.status;
  id("tables-tools").hidden = tables.length <= FEW;
  const wanted = tables.length > FEW ? chosen(tables, watch) : tables;
  const shown = isAll ? wanted : wanted.slice(0, AT_ONCE);
  const bySchema = Map.groupBy(shown, ({ schema }) => schema);
  place.classList.toggle("many", shown.length > AT_ONCE);
  arrange(place, [...bySchema].map(([schema, its]) => drawGroup(schema, its, tables, watch)));
  id("no-tables").hidden = wanted.length > 0 || !tables.length;
  id("all-tables").hidden = wanted.length <= AT_ONCE;
  text(id("all-tables"), isAll ? `Show ${AT_ONCE} tables` : `Show all ${count(wanted.length)} tables`);
}

/** Call `redraw` when other tables are to be shown, and `pick(name)` for a table that is pressed. */
export function onChoice(redraw, pick) {
  onPick = pick;
  const [find, sort] = [id("find-table"), id("sort-tables")];
  const choose = (name, field) => {
    follow(name, (content) => {
      field.value = content || (name === "sort" ? "trouble" : "");
      redraw();
    });
    field.addEventListener("input", () => {
      link(name, field.value === "trouble" ? "" : field.value.trim());
      redraw();
    });
  };
  choose("find", find);
  choose("sort", sort);
  id("all-tables").addEventListener("click", () => {
    isAll = !isAll;
    redraw();
  });
}

function chosen(tables, watch) {
  const term = id("find-table").value.trim().toLowerCase();
  const order = ORDERS[id("sort-tables").value] ?? ORDERS.trouble;
  const found = tables.filter((table) => table.name.toLowerCase().includes(term));
  return found.sort(order(watch)); // sorting keeps equal ones by name
}

function lately(watch, { name }) {
  return watch.rates.get(name)?.at(-1) ?? 0;
}

function drawGroup(schema, shown, tables, watch) {
  const group = groups.get(schema) ?? newGroup(schema);
  const all = tables.filter((table) => table.schema === schema).length;
  text(group.querySelector(".of-group"), several(all, "table"));
  arrange(group.lastElementChild, shown.map((table) => drawCard(table, watch)));
  return group;
}

function newGroup(schema) {
  const group = h("section", { class: "group", "aria-label": `Schema ${schema}` },
    h("h3", {}, `${schema} `, h("span", { class: "of-group" })), h("div", { class: "rows" }));
  groups.set(schema, group);
  return group;
}

function drawCard(table, watch) {
  const card = cards.get(table.name) ?? newCard(table);
  cards.set(table.name, card);
  fill(card, table, watch);
  return card;
}

function arrange(place, children) {
  if (children.length !== place.children.length || children.some((child, index) => place.children[index] !== child)) {
    place.replaceChildren(...children);
  }
}

function newCard({ schema, table, name }) {
  return h(
    "article",
    { class: "card", "data-table": name, "aria-label": name },
    h("h4", {}, h("button", { type: "button", title: "Show its changes only", onclick: () => onPick(name) },
      h("span", { class: "hidden" }, `${schema}.`), ...breakable(table))),
    sparkline(),
    h("p", { class: "rate" }, h("b", {}, "–"), " /s"),
    h("div", { class: "sums" }, h("p", { class: "facts" }),
      h("p", { class: "kinds-count" }, kind("insert"), kind("update"), kind("delete"), kind("truncate"))),
    h("div", { class: "trouble" }),
  );
}

// Long names may break where their words end.
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part) => [part, h("wbr")]);
}

function kind(operation) {
  return h("span", { class: operation, title: `${operation}s since the service started` });
}

function sparkline() {
  return s(
    "svg",
    { viewBox: `0 0 ${POINTS} 24`, preserveAspectRatio: "none", "aria-hidden": "true", class: "spark" },
    s("path", { class: "area" }),
    s("path", { class: "line" }),
  );
}

function fill(card, table, watch) {
  const rates = watch.rates.get(table.name) ?? [];
  text(card.querySelector(".rate b"), rates.length ? rate(rates.at(-1)) : "–");
  drawSpark(card.querySelector(".spark"), rates);
  for (const [operation, number] of Object.entries(table.changes ?? {})) {
    const place = card.querySelector(`.kinds-count .${operation}`);
    if (place) text(place, number ? count(number) : "");
  }
  text(card.querySelector(".facts"), facts(table, watch));
  card.classList.toggle("broken", isBroken(table));
  drawTrouble(card.querySelector(".trouble"), table);
}

function facts({ estimated_rows: rows, readers, last_change_at: last, changes, capture }, { now }) {
  const isTold = Object.keys(changes ?? {}).length > 0; // not to those who may see some rows only
  return [
    CAPTURE[capture] ?? capture,
    rows === null || rows === undefined ? null : several(rows, "row"),
    readers ? several(readers, "reader") : "no readers",
    last ? ago(Date.parse(last), now) : isTold ? "no change since the start" : null,
  ]
    .filter(Boolean)
    .join(" · ");
}

function drawTrouble(place, { trigger, problem, fix }) {
  const shown = isBroken({ trigger }) ? `${trigger} ${fix}` : "";
  if (place.dataset.shown === shown) return;
  place.dataset.shown = shown;
  place.replaceChildren();
  if (!shown) return;
  place.append(h("p", {}, h("strong", {}, `Triggers ${trigger}. `), problem ?? ""));
  if (fix) place.append(command(fix));
}

function drawSpark(svg, rates) {
  const [area, line] = svg.children;
  const top = Math.max(1, ...rates);
  const step = POINTS / (Math.max(FEWEST, rates.length) - 1);
  const x = (index) => (POINTS - (rates.length - 1 - index) * step).toFixed(2);
  const points = rates.map((rate, index) => `${x(index)},${(22 - (20 * rate) / top).toFixed(2)}`);
  line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  area.setAttribute("d", points.length > 1 ? `M${x(0)},24L${points.join("L")}L${POINTS},24Z` : "");
}
