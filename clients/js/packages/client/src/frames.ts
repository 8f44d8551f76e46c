/** One event of a stream, its data as text. */
export interface Frame {
  type: string;
  data: string;
  id: string;
}

/**
 * Reads server-sent events (HTML standard, 9.2) from text that arrives in pieces, cut anywhere.
 * Only what an empty line has finished counts.
 */
export class FrameParser {
  #rest = "";
  #type = "";
  #data: string[] = [];
  #id = "";
  #begun = false;

  /** Take the next text and return the events that it completes. */
  feed(text: string): Frame[] {
    const lines = this.#lines(text);
    return lines.map((line) => this.#take(line)).filter((frame) => frame !== null);
  }

  #lines(text: string): string[] {
    if (!this.#begun && text) {
      this.#begun = true;
      text = text.replace(/^\uFEFF/, "");
    }
    const all = this.#rest + text;
    // A CR at the end may be the first half of a CRLF.
    const end = all.endsWith("\r") ? all.length - 1 : all.length;
    const lines = all.slice(0, end).split(/\r\n|\r|\n/);
    this.#rest = lines.pop()! + all.slice(end);
    return lines;
  }

  #take(line: string): Frame | null {
    if (line === "") return this.#finish();
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#type = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  #finish(): Frame | null {
    const frame = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
    const isEvent = this.#data.length > 0;
    this.#type = "";
    this.#data = [];
    return isEvent ? frame : null;
  }
}
