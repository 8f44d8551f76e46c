// Numbers, times and values as people read them.

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function count(number) {
  if (number === null || number === undefined) return "–";
  return number < 100_000 ? plain.format(number) : short.format(number);
}

/** Events a second. */
export function rate(number) {
  if (number >= 1000) return short.format(number);
  return number >= 10 || number === 0 ? number.toFixed(0) : number.toFixed(1);
}

/** A size as number and unit. */
export function bytes(number) {
  let size = number;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size >= 100 ? size.toFixed(0) : Number(size.toFixed(1))} ${UNITS[unit]}`;
}

/** Seconds, in the unit that suits them. */
export function duration(seconds) {
  if (!seconds) return "0 ms";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.995) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 9.95 && !Number.isInteger(seconds)) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 129_600) return `${(seconds / 3600).toFixed(0)} h`;
  return `${(seconds / 86_400).toFixed(0)} days`;
}

/** How long ago; `now` and `then` in milliseconds. */
export function ago(then, now) {
  const seconds = Math.max(0, (now - then) / 1000);
  return seconds < 2 ? "now" : `${duration(Math.round(seconds))} ago`;
}

/** How long it has been so, in whole seconds at least. */
export function since(then, now) {
  return duration(Math.max(1, Math.round((now - then) / 1000)));
}

export function clock(time) {
  return new Date(time).toTimeString().slice(0, 8);
}

/** The same with milliseconds. */
export function precise(time) {
  return `${clock(time)}.${String(new Date(time).getMilliseconds()).padStart(3, "0")}`;
}

/** A column's value on one line. */
export function value(content, limit = 48) {
  if (content === null || content === undefined) return "null";
  const line = typeof content === "string" ? content : JSON.stringify(content);
  return line.length > limit ? `${line.slice(0, limit - 1)}…` : line;
}

/** A key as its values: `42`, or `7, b` for a composite one. */
export function keyText(key) {
  return key ? Object.values(key).map((part) => value(part, 24)).join(", ") : "";
}

/** `one table`, `3 tables`. */
export function several(number, noun) {
  return number === 1 ? `one ${noun}` : `${count(number)} ${noun}s`;
}
