// Questions to the service beside its streams: JSON, with the token, relative to where this file is.

const TIMEOUT = 10_000;

/** What an answer other than 200 says, or why there was none. */
export class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

/** Ask for `path` below the service, as in `v1/status`; raise `Refusal`. */
export async function ask(path, { token = null, timeout = TIMEOUT } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const signal = AbortSignal.timeout(timeout);
  const answer = await fetch(addressOf(path), { headers, signal }).catch(({ name }) => {
    throw new Refusal(0, name === "TimeoutError" ? "No answer came in time." : "The connection failed.");
  });
  if (answer.ok) return answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, problem.detail ?? `The answer was ${answer.status}.`);
}

/** The whole address of a path below the service. */
export function addressOf(path) {
  return new URL(`../${path}`, import.meta.url);
}

/** A key as the path of an address has it: the value, or a JSON array of several. */
export function keyPath(key) {
  const parts = Object.values(key);
  return encodeURIComponent(parts.length === 1 ? plain(parts[0]) : JSON.stringify(parts));
}

/** Tell whether a row can be asked for: a hidden key column leaves a digest under an empty name, and
    a dot as the end of an address means another place. */
export function isNamed(key) {
  return Boolean(key) && !Object.hasOwn(key, "") && !["", ".", ".."].includes(keyPath(key));
}

function plain(part) {
  return typeof part === "object" ? JSON.stringify(part) : String(part);
}
