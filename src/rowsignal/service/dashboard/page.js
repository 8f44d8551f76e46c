// Puts the page together: one watch on the service, one subscription, and what shows them.

import { ask } from "./api.js";
import { Builder } from "./builder.js";
import { drawCards, onChoice } from "./cards.js";
import { Chart } from "./charts.js";
import { command, id, text } from "./elements.js";
import { Feed } from "./feed.js";
import { Findings } from "./findings.js";
import { Following } from "./following.js";
import { bytes, count, duration, rate, several, since } from "./format.js";
import { Inspector } from "./inspector.js";
import { past } from "./past.js";
import { drawReaders, withoutReaders } from "./readers.js";
import { StatusWatch } from "./status.js";
import { Timeline } from "./timeline.js";
import { sentence } from "./status_text.js";

const TOKEN = "rowsignal-token";
const REACH = { live: "live", connecting: "connecting", waiting: "reconnecting", refused: "refused", closed: "closed" };

const READERS_PERIOD = 5000;

const tokenOf = () => watch.token;
const inspector = new Inspector(tokenOf, () => watch.status?.unavailable?.history);
const findings = new Findings(tokenOf);
const feed = new Feed((change) => inspector.open(change));
const timeline = new Timeline(id("timeline"));
const builder = new Builder(id("builder"));
const latencyChart = new Chart(id("latency-chart"), {
  series: [
    { name: "p50", of: (sample) => sample.p50, area: true },
    { name: "p99", of: (sample) => sample.p99 },
  ],
  format: duration,
});
const logChart = new Chart(id("log-chart"), {
  series: [{ name: "size", of: (sample) => sample.bytes, area: true }],
  format: bytes,
});
const following = new Following({
  onChange: (change) => {
    timeline.add(change);
    feed.add(change);
  },
  onReset: (reason) => feed.note(`Began anew: ${reason}`),
  onState: (state) => {
    showReach(state);
    recall();
  },
});
const watch = new StatusWatch(show);
let [hasBegun, hasRecalled] = [false, false];
let readersAt = 0;
let readersShown = null;
onChoice(() => watch.status && drawCards(id("tables"), watch), (name) => feed.filter(name));

function show() {
  showSentence();
  if (!watch.status) return;
  showVitals();
  const isEmpty = watch.status.tables.length === 0;
  id("vitals").hidden = isEmpty && !watch.status.ready;
  drawCards(id("tables"), watch);
  document.body.toggleAttribute("data-empty", isEmpty);
  id("begin").hidden = !isEmpty || !watch.status.ready;
  if (isEmpty) showBeginning(watch.status.candidates ?? []);
  timeline.name(watch.status.tables.map((table) => table.name));
  latencyChart.show(watch.samples);
  logChart.show(watch.samples);
  if (!watch.failure) showReaders();
  if (watch.failure || !watch.status.ready) return showReach(following.state);
  following.update(watch.status, watch.token);
  builder.offer(watch.status.tables, watch.token, watch.status.unavailable?.snapshot);
  showReach(following.state);
  if (!isEmpty && !hasBegun) begin();
  recall();
}

function begin() {
  hasBegun = true;
  if (watch.status.every_table) findings.examine();
  else findings.refuse();
  inspector.begin();
}

// The past is asked for once the stream has begun: so nothing falls between the two.
async function recall() {
  const isFollowed = following.state && following.state.status !== "connecting";
  if (hasRecalled || !isFollowed || !watch.status?.ready) return;
  hasRecalled = true;
  const { changes, marks } = await past(watch.status, watch.token);
  timeline.fill(marks, watch.skew);
  feed.fill(changes);
}

// Asked for now and then, and at once when their number is another: the figures have it, too.
async function showReaders() {
  const { now } = watch.status.readers ?? {};
  const isDue = Date.now() - readersAt > READERS_PERIOD || now !== readersShown;
  if (document.hidden || !isDue) return;
  readersAt = Date.now();
  readersShown = now;
  try {
    drawReaders(await ask("v1/readers", { token: watch.token }), watch.now);
  } catch (refusal) {
    withoutReaders(refusal.message);
  }
}

function showSentence() {
  const { tone, headline, aside = "", detail = "", fix } = sentence({ ...facts(), stream: following.state });
  document.body.dataset.tone = tone;
  text(id("headline"), headline);
  text(id("aside"), aside);
  text(id("announce"), headline); // figures that move all the time are not read out
  text(id("detail"), detail);
  if (id("fix").dataset.line !== (fix ?? "")) {
    id("fix").dataset.line = fix ?? "";
    id("fix").replaceChildren(...(fix ? [command(fix)] : []));
    id("fix").hidden = !fix;
  }
  id("sign-in").hidden = ![401, 403].includes(watch.failure?.status);
}

function facts() {
  const { status, failure, now, seenAt } = watch;
  return { status, failure, now, seenAt };
}

// The lamp is about changes of the database: a stream that lives beside a dead database brings none.
function showReach(given) {
  const isCut = given && (watch.failure || (watch.status && !watch.status.ready));
  const state = isCut ? { ...given, status: "waiting", reason: watch.failure?.reason ?? watch.status?.reason } : given;
  id("reach").hidden = !state;
  if (!state) return;
  id("reach").dataset.status = state.status;
  const shared = { leader: "", follower: ", through another tab", alone: "" }[state.role];
  text(id("reach").querySelector("span"), `${REACH[state.status]}${state.status === "live" ? shared : ""}`);
  id("reach").title = state.reason ?? "";
}

function showVitals() {
  const { status, now } = watch;
  const { latency, tables } = status;
  const [listener, readers, database] = [status.listener ?? {}, status.readers ?? {}, status.database ?? {}];
  text(id("database"), [database.name, database.server_version && `PostgreSQL ${database.server_version}`].filter(Boolean).join(" · "));
  const isCut = !status.ready || watch.failure;
  if (isCut) vital("rate", "–", "not known just now");
  else vital("rate", `${rate(watch.total)} /s`, followed(tables));
  if (latency?.count) vital("latency", duration(latency.p50), `99 % within ${duration(latency.p99)}`);
  else vital("latency", "–", "nothing to measure");
  const source = status.relay ? relayVital(status.relay, now) : listenerVital(listener, isCut, now);
  vital("listener", source.state ?? "–", source.note);
  vital("readers", count(readers.now), readersNote(readers));
  vital("log", ...(status.relay ? streamVital(status, now) : logVital(status, now)));
  showNames(Boolean(status.relay));
  id("vitals").querySelector("#vital-listener").parentElement.dataset.state = source.state ?? "";
  text(id("about"), `rowsignal ${status.version ?? ""} · running for ${since(Date.parse(status.started_at), now)}`);
  document.title = document.body.dataset.tone === "good" ? `${rate(watch.total)}/s · ${database.name ?? "rowsignal"}` : id("headline").textContent;
  id("timeline").setAttribute("aria-label", `${rate(watch.total)} changes a second on ${several(tables.length, "table")}`);
}

// A gateway has no listener and no log: a relay brings changes into a stream.
function showNames(isGateway) {
  text(id("name-listener"), isGateway ? "Relay" : "Listener");
  for (const name of ["name-log", "name-log-chart"]) text(id(name), isGateway ? "Stream" : "Change log");
}

function listenerVital(listener, isCut, now) {
  // A listener notices later than the service that nothing answers.
  const heard = isCut && listener.state === "listening" ? { state: "no answer" } : listener;
  return { state: heard.state, note: listenerNote(heard, now) };
}

function relayVital({ state, lag, since: start }, now) {
  const late = state === "at work" && lag > 1;
  return { state, note: late ? `${duration(lag)} behind` : `for ${since(Date.parse(start), now)}` };
}

function streamVital({ stream, ready }, now) {
  if (!stream || !ready) return ["–", "not known just now"];
  const reach = stream.oldest_at ? `the last ${since(Date.parse(stream.oldest_at), now)}` : "empty";
  const late = stream.behind > 1000 ? `, ${count(stream.behind)} to be read` : "";
  return [bytes(stream.bytes), `${several(stream.messages, "message")}, ${reach}${late}`];
}

function followed(tables) {
  const count = following.count;
  const all = `on ${several(tables.length, "table")}`;
  return count && count < tables.length ? `${all}, ${count} shown live` : all;
}

function logVital({ log, tables, ready }, now) {
  if (log) return [bytes(log.bytes), logNote(log, now)];
  if (!ready || tables.some(({ capture }) => ["log", "unknown"].includes(capture))) return ["–", "not known just now"];
  return ["none", tables.length ? "only hints are captured" : "no table is captured"];
}

// The tables there are, instead of names that mean nothing here.
function showBeginning(candidates) {
  const line = `rowsignal install --log ${candidates[0]?.command ?? "SCHEMA.TABLE"}`;
  if (id("begin-install").dataset.line === line) return;
  id("begin-install").dataset.line = line;
  id("begin-install").replaceChildren(command(line));
  const names = candidates.map(({ name }) => name);
  const sentence = names.length ? `This database has ${names.join(", ")}.` : "This database has no table with a primary key yet.";
  text(id("begin-tables"), sentence);
}

function vital(name, content, note) {
  text(id(`vital-${name}`), content);
  text(id(`note-${name}`), note);
}

function listenerNote({ since: start, reconnects, queue_usage: queue, unrelayed }, now) {
  if (queue > 0.1) return `queue ${Math.round(queue * 100)} % full`;
  if (unrelayed) return `${several(unrelayed, "table")} not relayed, polled`;
  const lost = reconnects ? `, ${several(reconnects, "reconnect")}` : "";
  return start ? `for ${since(Date.parse(start), now)}${lost}` : lost.slice(2);
}

function readersNote({ limit, resets }) {
  if (resets) return `${several(resets, "reset")} for slow ones`;
  return limit ? `of at most ${count(limit)}` : "";
}

function logNote({ oldest_at: oldest, retention_seconds: retention }, now) {
  const reach = oldest ? `the last ${since(Date.parse(oldest), now)}` : "empty";
  return retention ? `${reach}, kept ${duration(retention)}` : reach;
}

id("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  watch.token = id("token").value.trim();
  keep(watch.token);
  watch.ask();
});

// The token lasts as long as the tab.
function keep(token) {
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // storage may be forbidden
  }
}

function kept() {
  try {
    return sessionStorage.getItem(TOKEN);
  } catch {
    return null;
  }
}

watch.token = kept();
watch.ask();
