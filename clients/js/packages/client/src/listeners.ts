type Listener = (value: never) => void;

/** Listeners by event; what one of them throws is reported, and costs no other listener anything. */
export class Listeners<E extends object> {
  #lists = new Map<keyof E, Set<Listener>>();

  add<N extends keyof E>(event: N, listener: (value: E[N]) => void): () => void {
    const own = (value: E[N]) => listener(value); // the same function may be added twice
    const list = this.#lists.get(event) ?? new Set();
    this.#lists.set(event, list.add(own as Listener));
    return () => void list.delete(own as Listener);
  }

  notify<N extends keyof E>(event: N, value: E[N]): void {
    for (const listener of [...(this.#lists.get(event) ?? [])]) {
      try {
        (listener as (value: E[N]) => void)(value);
      } catch (error) {
        report(error); // a caller's mistake must not cost the next change
      }
    }
  }

  clear(): void {
    this.#lists.clear();
  }
}

function report(error: unknown): void {
  if (typeof reportError === "function") reportError(error);
  else console.error(error);
}
