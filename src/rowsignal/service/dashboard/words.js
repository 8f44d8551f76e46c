// The state of everything in a sentence or two: what a glance from across the room should tell.

import { ago, clock, duration, several } from "./format.js";

const QUIET = 60_000; // ms without a change after which a latency is no news

/** Say how things are: tone (`good`, `wait`, `bad`), headline, what to add, detail, helping command. */
export function sentence({ status, failure, now, seenAt }) {
  if (failure?.status === 401) return locked(failure);
  if (failure) return unreachable(failure, seenAt);
  if (!status) return { tone: "wait", headline: "Looking for the service." };
  return ofService(status) ?? ofListener(status.listener ?? {}) ?? ofTables(status, now);
}

function locked({ reason }) {
  return { tone: "wait", headline: "This service asks who you are.", detail: reason };
}

function unreachable({ reason }, seenAt) {
  const seen = seenAt ? ` What you see is from ${clock(seenAt)}.` : "";
  return { tone: "bad", headline: "The service does not answer.", detail: `${reason} Trying again.${seen}` };
}

function ofService({ state, reason }) {
  if (state === "degraded") return { tone: "bad", headline: "Waiting for PostgreSQL.", detail: firstLine(reason) };
  if (state === "starting") return { tone: "wait", headline: "The service is starting." };
  if (state === "stopping") return { tone: "wait", headline: "The service is shutting down." };
  return null;
}

function ofListener({ state, reason }) {
  const detail = firstLine(reason);
  if (state === "polling") {
    return { tone: "wait", headline: "Polling.", aside: "Changes arrive a little later.", detail };
  }
  if (state === "reconnecting" || state === "connecting") {
    return { tone: "bad", headline: "Waiting for PostgreSQL.", detail };
  }
  return null;
}

function ofTables({ tables = [], latency }, now) {
  if (!tables.length) {
    return { tone: "wait", headline: "Nothing to watch yet.", aside: "No table has its triggers." };
  }
  const broken = tables.filter(isBroken);
  if (broken.length) return ofBroken(broken, tables);
  const watched = several(tables.length, "table");
  const last = Math.max(0, ...tables.map((table) => Date.parse(table.last_change_at ?? 0) || 0));
  const headline = `Listening to ${watched}.`;
  if (latency?.count) return { tone: "good", headline, aside: `A change is here in ${duration(latency.p50)}.` };
  const isQuiet = last && now - last > QUIET;
  return { tone: "good", headline, aside: isQuiet ? `The last change was ${ago(last, now)}.` : "All is quiet." };
}

function ofBroken(broken, tables) {
  const [first] = broken;
  const who = broken.length === 1 ? first.name : `${broken.length} of ${tables.length} tables`;
  const verb = broken.length === 1 ? "needs" : "need";
  const headline = `Listening, but ${who} ${verb} mending.`;
  return { tone: "wait", headline, detail: first.problem ?? "", mend: first.mend };
}

// What a database says may go on for lines; the first one is the news.
function firstLine(reason) {
  return (reason ?? "").split("\n")[0];
}

/** Tell whether a table's triggers do less than they should. */
export function isBroken({ trigger }) {
  return trigger !== "installed";
}
