// What the log knows of the time before this page was open.

import { ask } from "./api.js";
import { fromLog } from "./changes.js";

const CHANGES = 100;

/** Return `{changes, marks}`: the newest changes, and counts by table; nothing where there is no log. */
export async function past(status, token) {
  const found = { changes: [], marks: { ...status.recent } };
  if (!status.log) return found;
  const [changes, timeline] = await Promise.allSettled([
    ask(`v1/history?limit=${CHANGES}`, { token }),
    ask("v1/timeline", { token }),
  ]);
  if (changes.status === "fulfilled") found.changes = changes.value.changes.map(fromLog);
  if (timeline.status === "fulfilled") Object.assign(found.marks, timeline.value.tables);
  return found;
}
