// A card for each table: how much happens, who reads, whether its triggers are sound.

import { command, h, s, text } from "./elements.js";
import { ago, count, rate, several } from "./format.js";
import { isBroken } from "./words.js";

const POINTS = 60;
const FEWEST = 15; // points across, as long as there are not more
const CAPTURE = { log: "logged", hint: "hints", none: "not captured" };

/** Draw the cards anew into `place`, keeping those that stay. */
export function drawCards(place, watch) {
  const { tables } = watch.status;
  const cards = tables.map((table) => {
    const card = place.querySelector(`[data-table="${CSS.escape(table.name)}"]`) ?? newCard(table);
    fill(card, table, watch);
    return card;
  });
  if (cards.length !== place.children.length || cards.some((card, index) => place.children[index] !== card)) {
    place.replaceChildren(...cards);
  }
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
  text(card.querySelector(".facts"), facts(table, watch.now));
  card.classList.toggle("broken", isBroken(table));
  drawTrouble(card.querySelector(".trouble"), table);
}

function facts({ estimated_rows: rows, readers, last_change_at: last }, now) {
  return [
    rows === null || rows === undefined ? null : several(rows, "row"),
    readers ? several(readers, "reader") : "nobody reads",
    last ? ago(Date.parse(last), now) : "no change yet",
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
