// The state of everything in a sentence or two: what a glance from across the room should tell.

import { ago, clock, duration, several } from "./format.js";

const LATE = 10; // seconds
const QUIET = 60_000; // ms without a change after which a latency is no news

/** Say how things are: tone (`good`, `wait`, `bad`), headline, what to add, detail, helping command. */
export function sentence({ status, failure, now, seenAt, stream }) {
  if (failure) return ofFailure(failure, seenAt);
  if (!status) return { tone: "wait", headline: "Looking for the service." };
  return ofService(status) ?? ofListener(status.listener ?? {}) ?? ofRelay(status.relay ?? {}) ?? ofStream(stream) ?? ofTables(status, now);
}

function ofFailure({ status, reason }, seenAt) {
  if (status === 401) return { tone: "wait", headline: "This service asks who you are.", detail: reason };
  if (status === 403) return { tone: "wait", headline: "This token may not see the status.", detail: reason };
  const seen = seenAt ? ` What you see is from ${clock(seenAt)}.` : "";
  const headline = status ? "The service refuses to say how it is." : "The service does not answer.";
  return { tone: "bad", headline, detail: `${reason} Trying again.${seen}` };
}

function ofService({ state, reason, relay }) {
  if (state === "degraded") {
    const detail = `${firstLine(reason)}. What you see below is from before.`;
    return { tone: "bad", headline: `Waiting for ${relay ? "NATS" : "PostgreSQL"}.`, detail };
  }
  if (state === "starting") return { tone: "wait", headline: "The service is starting." };
  if (state === "stopping") return { tone: "wait", headline: "The service is shutting down." };
  return null;
}

function ofListener({ state, reason }) {
  if (!["polling", "reconnecting", "connecting"].includes(state)) return null;
  const detail = `Notifications do not arrive: ${firstLine(reason) || "the connection is being made"}.`;
  if (state === "reconnecting") return { tone: "wait", headline: "Reconnecting to PostgreSQL.", aside: "Changes may arrive late.", detail };
  return { tone: "wait", headline: "Polling.", aside: "Changes arrive a little later.", detail };
}

// Of a gateway: changes reach it by a relay.
function ofRelay({ state, lag }) {
  if (state === "silent") {
    const detail = "What is committed meanwhile is kept by the database, and comes once a relay runs again.";
    return { tone: "bad", headline: "No relay is at work.", aside: "Changes do not arrive.", detail, fix: "rowsignal relay --nats URL" };
  }
  if (!(lag > LATE)) return null;
  return { tone: "wait", headline: `The relay is ${duration(lag)} behind.`, aside: "Changes arrive late." };
}

function ofStream(stream) {
  if (stream?.status === "waiting" && stream.reason) {
    const detail = `Its stream is to begin again: ${firstLine(stream.reason)}.`;
    return { tone: "wait", headline: "This page receives no changes just now.", detail };
  }
  if (!["refused", "closed"].includes(stream?.status)) return null;
  const detail = `The stream was refused: ${stream.reason ?? "no reason was given"}`;
  return { tone: "bad", headline: "This page receives no changes.", detail };
}

function ofTables(status, now) {
  const { tables = [], latency } = status;
  if (!tables.length) {
    return { tone: "wait", headline: "Nothing to watch yet.", aside: "No table has its triggers." };
  }
  const broken = tables.filter(isBroken);
  if (broken.length) return ofBroken(broken, tables);
  const headline = `Listening to ${several(tables.length, "table")}.`;
  if (latency?.count) return { tone: "good", headline, aside: `A change is here in ${duration(latency.p50)}.` };
  return { tone: "good", headline, aside: ofQuiet(tables, status, now) };
}

function ofQuiet(tables, { started_at: start }, now) {
  const times = tables.map((table) => Date.parse(table.last_change_at ?? "")).filter((time) => !Number.isNaN(time));
  const last = Math.max(...times);
  if (!times.length) return start ? `No change was seen since ${clock(Date.parse(start))}.` : "All is quiet.";
  return now - last > QUIET ? `The last change was ${ago(last, now)}.` : "All is quiet.";
}

function ofBroken(broken, tables) {
  const [first] = broken;
  const who = broken.length === 1 ? first.name : `${broken.length} of ${tables.length} tables`;
  const verb = broken.length === 1 ? "needs" : "need";
  const headline = `Listening, but ${who} ${verb} mending.`;
  return { tone: "wait", headline, detail: first.problem ?? "", fix: first.fix };
}

// What a database says may go on for lines; the first one is the news.
function firstLine(reason) {
  return (reason ?? "").split("\n")[0].replace(/\.$/, "");
}

/** Tell whether a table's triggers do less than they should; what is not known is not broken. */
export function isBroken({ trigger }) {
  return !["installed", "unknown"].includes(trigger);
}
