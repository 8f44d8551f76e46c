// The streams of this process and the named consumers of the log: since when, and how far behind.

import { h, id, text } from "./elements.js";
import { ago, bytes, count, duration, since } from "./format.js";

/** Show an answer of `v1/readers`; `now` is the service's time. */
export function drawReaders({ readers, total, consumers }, now) {
  const rest = total > readers.length ? ` The ${readers.length} that lag most are shown.` : "";
  text(id("streams-note"), total ? `${count(total)} ${total === 1 ? "stream is" : "streams are"} open in this process.${rest}` : "No stream is open.");
  id("streams").hidden = !total;
  id("streams").querySelector("tbody").replaceChildren(...readers.map((reader) => streamRow(reader, now)));
  if (!consumers) return; // not known just now
  id("consumers-part").hidden = !consumers.length;
  id("consumers").querySelector("tbody").replaceChildren(...consumers.map(consumerRow));
}

/** Say why there is nothing to show. */
export function withoutReaders(reason) {
  text(id("streams-note"), reason);
  id("streams").hidden = true;
  id("consumers-part").hidden = true;
}

function streamRow({ principal, tables, since: start, lag, buffer, limit, resets }, now) {
  const isSlow = lag > 1 || buffer > limit / 2;
  return row(isSlow, principal, named(tables), since(Date.parse(start), now), lag ? duration(lag) : "none", `${bytes(buffer)} of ${bytes(limit)}`, count(resets));
}

function consumerRow(it) {
  const name = it.partitions > 1 ? `${it.name} [${it.partition}]` : it.name;
  const used = it.retention_used === null ? "–" : `${Math.round(it.retention_used * 100)} %`;
  const behind = it.lag_changes ? `${count(it.lag_changes)} changes, ${duration(it.lag_seconds)}` : "none";
  const reset = it.reset_at ? `${count(it.resets)}, last ${ago(Date.parse(it.reset_at), Date.now())}` : count(it.resets);
  const isSlow = Boolean(it.problem) || it.attempts > 0 || it.dead_letters > 0 || (it.lag_changes > 0 && !it.worker);
  const letters = [it.attempts ? `failing, ${it.attempts} attempts` : null, it.dead_letters ? `${count(it.dead_letters)} dead letters` : null, it.problem];
  return row(isSlow, name, named(it.tables), it.worker ?? "no worker", behind, used, reset, letters.filter(Boolean).join("; ") || "none");
}

function row(isTrouble, first, ...cells) {
  return h("tr", { class: isTrouble ? "slow" : "" }, h("th", { scope: "row" }, first), ...cells.map((cell) => h("td", {}, cell)));
}

function named(tables) {
  return tables.length > 3 ? `${tables.slice(0, 3).join(", ")} and ${tables.length - 3} more` : tables.join(", ");
}
