// What is chosen on the page, in the address: a link leads others to the same view.
// It stays behind the #, which browsers do not send.

const chosen = new URLSearchParams(isOurs(location.hash) ? location.hash.slice(1) : "");
const listeners = new Map();

/** What the address says of a choice; an empty text where it says nothing. */
export function linked(name) {
  return chosen.get(name) ?? "";
}

/** Put a choice into the address; an empty one takes it out. */
export function link(name, content) {
  if (linked(name) === content) return;
  if (content) chosen.set(name, content);
  else chosen.delete(name);
  const hash = chosen.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

/** Call `take(content)` with what the address says, now if it says something and when it changes. */
export function follow(name, take) {
  listeners.set(name, take);
  if (linked(name)) take(linked(name));
}

addEventListener("hashchange", () => {
  if (location.hash && !isOurs(location.hash)) return; // a place on the page
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [name, take] of listeners) {
    const content = wanted.get(name) ?? "";
    if (content === linked(name)) continue;
    if (content) chosen.set(name, content);
    else chosen.delete(name);
    take(content);
  }
});

function isOurs(hash) {
  return hash.includes("=");
}
