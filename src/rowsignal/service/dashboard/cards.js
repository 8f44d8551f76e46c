// A card for each table: how much happens, who reads, whether its triggers are sound.

import { command, h, id, s, text } from "./elements.js";
import { ago, count, rate, several } from "./format.js";
import { isBroken } from "./status_text.js";

const POINTS = 60;
const FEWEST = 15; // points across, as long as there are not more
const CAPTURE = { log: "logged", hint: "hints", none: "not captured", unknown: "" };

const AT_ONCE = 24; // cards: of more, the rest is a press away
const ORDERS = {
  trouble: (watch) => (one, other) => isBroken(other) - isBroken(one) || lately(watch, other) - lately(watch, one),
  rate: (watch) => (one, other) => lately(watch, other) - lately(watch, one),
  name: () => () => 0,
};

let isAll = false;

/** Draw the cards anew into `place`, keeping those that stay. */
export function drawCards(place, watch) {
  const { tables } = watch.status;
  const isMany = tables.length > AT_ONCE;
  id("tables-tools").hidden = !isMany;
  const wanted = isMany ? chosen(tables, watch) : tables;
  const shown = isAll ? wanted : wanted.slice(0, AT_ONCE);
  const cards = shown.map((table) => {
    const card = place.querySelector(`[data-table="${CSS.escape(table.name)}"]`) ?? newCard(table);
    fill(card, table, watch);
    return card;
  });
  if (cards.length !== place.children.length || cards.some((card, index) => place.children[index] !== card)) {
    place.replaceChildren(...cards);
  }
  id("no-tables").hidden = wanted.length > 0 || !tables.length;
  id("all-tables").hidden = wanted.length <= AT_ONCE;
  text(id("all-tables"), isAll ? `Show ${AT_ONCE} tables` : `Show all ${count(wanted.length)} tables`);
}

/** Call `redraw` when other tables are to be shown. */
export function onChoice(redraw) {
  id("find-table").addEventListener("input", redraw);
  id("sort-tables").addEventListener("change", redraw);
  id("all-tables").addEventListener("click", () => {
    isAll = !isAll;
    redraw();
  });
}

function chosen(tables, watch) {
  const term = id("find-table").value.trim().toLowerCase();
  const found = tables.filter((table) => table.name.toLowerCase().includes(term));
  return [...found].sort(ORDERS[id("sort-tables").value](watch)); // sorting keeps equal ones by name
}

function lately(watch, { name }) {
  return watch.rates.get(name)?.at(-1) ?? 0;
}

function newCard({ schema, table, name }) {
  return h(
    "article",
    { class: "card", "data-table": name, "aria-label": name },
    h("header", {}, h("h3", {}, h("span", { class: "schema" }, `${schema}.`), ...breakable(table)), h("span", { class: "capture" })),
    h("div", { class: "pulse" }, sparkline(), h("p", { class: "rate" }, h("b", {}, "–"), " /s")),
    h("p", { class: "kinds-count" }, kind("insert"), kind("update"), kind("delete"), kind("truncate")),
    h("p", { class: "facts" }),
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
  text(card.querySelector(".capture"), CAPTURE[table.capture] ?? table.capture);
  text(card.querySelector(".rate b"), rates.length ? rate(rates.at(-1)) : "–");
  drawSpark(card.querySelector(".spark"), rates);
  for (const [operation, number] of Object.entries(table.changes ?? {})) {
    const place = card.querySelector(`.kinds-count .${operation}`);
    if (place) text(place, number || operation !== "truncate" ? count(number) : "");
  }
  text(card.querySelector(".facts"), facts(table, watch));
  card.classList.toggle("broken", isBroken(table));
  drawTrouble(card.querySelector(".trouble"), table);
}

function facts({ estimated_rows: rows, readers, last_change_at: last, changes }, { now }) {
  const isTold = Object.keys(changes ?? {}).length > 0; // not to those who may see some rows only
  return [
    rows === null || rows === undefined ? null : several(rows, "row"),
    readers ? several(readers, "reader") : "no readers",
    last ? ago(Date.parse(last), now) : isTold ? "no change since the start" : null,
  ]
    .filter(Boolean)
    .join(" · ");
}

function drawTrouble(place, { trigger, problem, mend }) {
  const shown = isBroken({ trigger }) ? `${trigger} ${mend}` : "";
  if (place.dataset.shown === shown) return;
  place.dataset.shown = shown;
  place.replaceChildren();
  if (!shown) return;
  place.append(h("p", {}, h("strong", {}, `Triggers ${trigger}. `), problem ?? ""));
  if (mend) place.append(command(mend));
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
