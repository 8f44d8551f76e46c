// Line charts over what was seen, at most ten minutes: read by eye, pointer or arrow keys.

import { h, s } from "./elements.js";
import { ago } from "./format.js";

const MINUTE = 60_000; // ms
const SHORTEST = 2 * MINUTE;
const LONGEST = 10 * MINUTE;
const HEIGHT = 150;
const EDGE = { left: 58, right: 10, top: 10, bottom: 20 };

export class Chart {
  #figure;
  #series;
  #format;
  #steps;
  #svg = s("svg", { class: "chart", "aria-hidden": "true" });
  #reading = h("p", { class: "reading", "aria-live": "off" });
  #samples = [];
  #picked = null; // sample under the pointer or the arrow keys

  /** `series`: {name, of(sample), area?}; `format(value)`; `base`: 10 or 2 for steps of the scale. */
  constructor(figure, { series, format, base = 10 }) {
    this.#figure = figure;
    this.#series = series;
    this.#format = format;
    this.#steps = base === 10 ? [1, 2, 5, 10] : [1, 2, 4, 8, 10];
    figure.querySelector("figcaption").after(this.#reading);
    figure.append(this.#svg);
    figure.addEventListener("pointermove", (event) => this.#pick(this.#nearest(event)));
    figure.addEventListener("pointerleave", () => this.#pick(null));
    figure.addEventListener("blur", () => this.#pick(null));
    figure.addEventListener("keydown", (event) => this.#step(event));
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  /** Show these samples, each with `at` in milliseconds. */
  show(samples) {
    this.#samples = samples;
    this.draw();
  }

  draw() {
    const width = this.#figure.clientWidth;
    if (!width) return;
    const scale = this.#scale(width);
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.setAttribute("height", HEIGHT);
    this.#svg.replaceChildren(...this.#grid(width, scale), ...this.#lines(scale), ...this.#cursor(scale));
    this.#read();
  }

  #scale(width) {
    const values = this.#samples.flatMap((sample) => this.#series.map(({ of }) => of(sample) ?? 0));
    const ticks = this.#ticks(Math.max(...values, 0));
    const top = ticks.at(-1);
    const now = Date.now();
    const span = Math.min(LONGEST, Math.max(SHORTEST, now - (this.#samples[0]?.at ?? now)));
    const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
    return {
      ticks,
      span,
      x: (at) => EDGE.left + inner.width * (1 - (now - at) / span),
      y: (value) => EDGE.top + inner.height * (1 - value / top),
    };
  }

  #ticks(top) {
    if (!top) return [0, 1];
    const size = 10 ** Math.floor(Math.log10(top / 3));
    const step = size * (this.#steps.find((factor) => factor * size * 3 >= top) ?? 10);
    return [0, 1, 2, 3].map((index) => index * step);
  }

  #grid(width, { ticks, span, y, x }) {
    const isEmpty = !this.#samples.some((sample) => this.#series.some(({ of }) => of(sample) !== null));
    const rules = ticks.map((tick) => s("path", { class: "rule", d: `M${EDGE.left},${y(tick)}H${width - EDGE.right}` }));
    const labels = isEmpty ? [] : ticks.map((tick) => label(EDGE.left - 8, y(tick) + 4, "end", this.#format(tick)));
    const now = Date.now();
    const times = [10, 5, 2, 1]
      .filter((minutes) => minutes * MINUTE <= span && minutes * MINUTE > span / 3)
      .map((minutes) => label(x(now - minutes * MINUTE), HEIGHT - 4, "middle", `−${minutes} min`));
    return [...rules, ...labels, ...times, label(width - EDGE.right, HEIGHT - 4, "end", "now")];
  }

  #lines({ x, y }) {
    const inside = this.#samples.filter(({ at }) => x(at) >= EDGE.left);
    return this.#series.flatMap(({ name, of, area }) => {
      const points = inside.filter((sample) => of(sample) !== null).map((sample) => `${x(sample.at).toFixed(1)},${y(of(sample)).toFixed(1)}`);
      if (points.length < 2) return [];
      const line = s("path", { class: `line ${name}`, d: `M${points.join("L")}` });
      const [first] = points[0].split(",");
      const [last] = points.at(-1).split(",");
      const shape = `M${first},${y(0)}L${points.join("L")}L${last},${y(0)}Z`;
      return area ? [s("path", { class: `area ${name}`, d: shape }), line] : [line];
    });
  }

  #cursor({ x, y }) {
    if (!this.#picked) return [];
    const at = x(this.#picked.at);
    const dots = this.#series
      .filter(({ of }) => of(this.#picked) !== null)
      .map(({ name, of }) => s("circle", { class: `dot ${name}`, cx: at, cy: y(of(this.#picked)), r: 3.5 }));
    return [s("path", { class: "cursor", d: `M${at},${EDGE.top}V${HEIGHT - EDGE.bottom}` }), ...dots];
  }

  #read() {
    const sample = this.#picked ?? this.#samples.at(-1);
    const parts = sample
      ? this.#series.map(({ name, of }) => {
          const value = of(sample);
          return h("span", { class: `reading-of ${name}` }, `${name} `, h("b", {}, value === null ? "–" : this.#format(value)));
        })
      : [];
    const when = this.#picked ? [h("span", { class: "when" }, ago(this.#picked.at, Date.now()))] : [];
    this.#reading.replaceChildren(...parts, ...when);
    const title = this.#figure.querySelector("figcaption").textContent;
    this.#figure.setAttribute("aria-label", `${title}: ${this.#reading.textContent}`);
  }

  #pick(sample) {
    this.#picked = sample;
    this.draw();
  }

  #nearest(event) {
    const box = this.#svg.getBoundingClientRect();
    const { x } = this.#scale(this.#figure.clientWidth);
    const distance = (sample) => Math.abs(x(sample.at) - (event.clientX - box.left));
    return this.#samples.reduce((best, sample) => (best && distance(best) <= distance(sample) ? best : sample), null);
  }

  #step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.#samples.length) return;
    event.preventDefault();
    const at = this.#picked ? this.#samples.indexOf(this.#picked) : this.#samples.length;
    this.#pick(this.#samples[Math.min(Math.max(at + move, 0), this.#samples.length - 1)]);
  }
}

function label(x, y, anchor, content) {
  return s("text", { x, y, "text-anchor": anchor }, content);
}
