// What the doctor finds, the worst first, each with how to fix it.

import { ask } from "./api.js";
import { command, h, id, text } from "./elements.js";
import { clock, several } from "./format.js";

const LABELS = { error: "Error", warning: "Warning", note: "Note" };

export class Findings {
  #tokenOf;
  #isAsking = false;

  constructor(tokenOf) {
    this.#tokenOf = tokenOf;
    id("examine").addEventListener("click", () => this.examine(true));
  }

  /** Say that the doctor is not for this token. */
  refuse() {
    id("examine").hidden = true;
    text(id("doctor-note"), "The doctor examines the whole database: it is for tokens of every table.");
  }

  /** Ask the doctor; `again` for what is so just now. */
  async examine(again = false) {
    if (this.#isAsking) return;
    this.#isAsking = true;
    id("examine").disabled = true;
    text(id("doctor-note"), "The database is being examined.");
    try {
      this.#show(await ask(`v1/doctor${again ? "?again=true" : ""}`, { token: this.#tokenOf(), timeout: 30_000 }));
    } catch (refusal) {
      text(id("doctor-note"), refusal.message);
      id("findings").replaceChildren();
    }
    this.#isAsking = false;
    id("examine").disabled = false;
  }

  #show({ findings, examined_at: at }) {
    const wrong = findings.filter(({ severity }) => severity !== "ok");
    const good = findings.length - wrong.length;
    const news = wrong.length ? `${several(wrong.length, "finding")}, ${good} in order.` : `All ${good} checks are in order.`;
    text(id("doctor-note"), `${news} Examined at ${clock(Date.parse(at))}.`);
    id("findings").replaceChildren(...wrong.map(finding));
  }
}

function finding({ severity, subject, message, fix }) {
  return h("li", { class: `finding ${severity}` },
    h("p", {}, h("strong", {}, LABELS[severity] ?? severity), " ", h("b", {}, subject), ` ${message}`),
    fix ? command(fix) : null);
}
