const ONLINE = ["online", "pageshow"];

/** Whether this is a page: shared connections and visibility are for pages. */
export function isPage(): boolean {
  return typeof document !== "undefined";
}

/** Whether the page is visible; a worker and a server count as visible. */
export function isVisible(): boolean {
  return !isPage() || document.visibilityState === "visible";
}

/** Call back at each sign that the network may be there again; returns what ends it. */
export function onComeback(act: () => void): () => void {
  const ending = new AbortController();
  const { signal } = ending;
  const whenVisible = () => isVisible() && act();
  const listen = (globalThis as Partial<EventTarget>).addEventListener?.bind(globalThis);
  for (const name of ONLINE) listen?.(name, whenVisible, { signal });
  if (isPage()) document.addEventListener("visibilitychange", whenVisible, { signal });
  return () => ending.abort();
}
