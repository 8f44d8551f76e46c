// The timeline: every change of the last minute and a half, a lane for each table, running left.

const SPAN = 90_000; // ms shown
const BIN = 300; // ms that one bar stands for
const LANES = 6;
const KINDS = ["insert", "update", "delete", "truncate"];

export class Timeline {
  #canvas;
  #lanes = new Map(); // table -> Map(bin -> counts by kind)
  #ink = {};
  #moves = matchMedia("(prefers-reduced-motion: reduce)");
  #drawnAt = 0;
  #peak = 4; // changes in the tallest bar, eased

  constructor(canvas) {
    this.#canvas = canvas;
    const recolour = () => {
      this.#ink = {};
      this.#draw();
    };
    addEventListener("rowsignal-theme", recolour);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    new ResizeObserver(() => this.#draw()).observe(canvas);
    requestAnimationFrame((time) => this.#frame(time));
  }

  /** Give every table its lane before anything happens in it. */
  name(tables) {
    for (const table of tables) if (!this.#lanes.has(table)) this.#lanes.set(table, new Map());
    for (const table of this.#lanes.keys()) if (!tables.includes(table)) this.#lanes.delete(table);
    const height = `${30 + Math.max(1, Math.min(LANES, this.#lanes.size)) * 34}px`;
    if (this.#canvas.style.height !== height) this.#canvas.style.height = height;
  }

  add({ table, operation }) {
    const bins = this.#lanes.get(table);
    if (!bins) return;
    const bin = Math.floor(Date.now() / BIN);
    const counts = bins.get(bin) ?? [0, 0, 0, 0];
    counts[KINDS.indexOf(operation)] += 1;
    bins.set(bin, counts);
  }

  /** Show what happened before this page was open; `recent`: {table: [[at, kind, count]]}. */
  fill(recent, skew) {
    const now = Math.floor(Date.now() / BIN);
    for (const [table, marks] of Object.entries(recent)) {
      const bins = this.#lanes.get(table) ?? new Map();
      const found = new Map();
      for (const [at, kind, count] of marks) {
        const bin = Math.floor((at * 1000 - skew) / BIN);
        if (bin >= now - 1) continue; // its own stream brings these
        const counts = found.get(bin) ?? [0, 0, 0, 0];
        counts[KINDS.indexOf(kind)] += count;
        found.set(bin, counts);
      }
      const older = [...found].filter(([bin]) => !bins.has(bin));
      this.#lanes.set(table, new Map([...older, ...bins].sort(([one], [other]) => one - other)));
    }
  }

  // A picture for each pixel that the timeline has moved; one a second where motion is unwelcome.
  #frame(time) {
    const pixel = SPAN / (this.#canvas.clientWidth || 1);
    if (time - this.#drawnAt > (this.#moves.matches ? 1000 : Math.max(pixel, 80))) {
      this.#drawnAt = time;
      this.#draw();
    }
    requestAnimationFrame((next) => this.#frame(next));
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale)) this.#canvas.width = Math.round(width * scale);
    if (this.#canvas.height !== Math.round(height * scale)) this.#canvas.height = Math.round(height * scale);
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const now = Date.now();
    this.#forget(now);
    const lanes = this.#shown();
    this.#rule(pen, width, height, now);
    this.#peak += (Math.max(4, ...lanes.flatMap(([, bins]) => [...bins.values()].map(total))) - this.#peak) / 12;
    lanes.forEach(([table, bins], index) => this.#lane(pen, { table, bins, top: 8 + index * 34, width, now }));
  }

  #forget(now) {
    const oldest = (now - SPAN) / BIN - 1;
    for (const bins of this.#lanes.values()) {
      for (const bin of bins.keys()) {
        if (bin >= oldest) break;
        bins.delete(bin);
      }
    }
  }

  #shown() {
    const lanes = [...this.#lanes];
    if (lanes.length <= LANES) return lanes;
    const busiest = [...lanes].sort((one, other) => other[1].size - one[1].size).slice(0, LANES);
    return lanes.filter((lane) => busiest.includes(lane));
  }

  #rule(pen, width, height, now) {
    pen.font = `11px ${this.#face()}`;
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    for (let seconds = 0; seconds < SPAN / 1000; seconds += 15) {
      const x = width - (seconds * 1000 * width) / SPAN;
      pen.fillStyle = this.#colour("line");
      if (seconds) pen.fillRect(Math.round(x), 0, 1, height - 20);
      pen.fillStyle = this.#colour("muted");
      if (seconds && width > 420) pen.fillText(`${seconds} s`, x, height - 5);
    }
    pen.textAlign = "right";
    pen.fillText("now", width, height - 5);
  }

  #lane(pen, { table, bins, top, width, now }) {
    const bar = Math.max(2, (BIN * width) / SPAN - 1);
    const base = top + 30;
    pen.fillStyle = this.#colour("line");
    pen.fillRect(0, base, width, 1);
    for (const [bin, counts] of bins) {
      const x = width - ((now - bin * BIN) * width) / SPAN;
      const height = Math.max(5, 24 * Math.sqrt(total(counts) / this.#peak));
      this.#bar(pen, { x, bar, base, height, counts });
    }
    this.#label(pen, table, top);
  }

  #bar(pen, { x, bar, base, height, counts }) {
    let y = base;
    counts.forEach((number, kind) => {
      if (!number) return;
      const part = (height * number) / total(counts);
      pen.fillStyle = this.#colour(KINDS[kind]);
      pen.fillRect(x, y - part, bar, part);
      y -= part;
    });
  }

  #label(pen, table, top) {
    pen.textAlign = "left";
    const wide = pen.measureText(table).width;
    pen.fillStyle = this.#colour("paper");
    pen.globalAlpha = 0.85;
    pen.fillRect(0, top + 6, wide + 8, 17);
    pen.globalAlpha = 1;
    pen.fillStyle = this.#colour("muted");
    pen.fillText(table, 0, top + 19);
  }

  // A canvas knows no CSS variables; a probe element resolves them for the theme at hand.
  #colour(name) {
    if (!this.#ink[name]) {
      const probe = document.createElement("i");
      probe.style.color = `var(--${name})`;
      document.body.append(probe);
      this.#ink[name] = getComputedStyle(probe).color;
      probe.remove();
    }
    return this.#ink[name];
  }

  #face() {
    this.#ink.face ??= getComputedStyle(document.body).fontFamily;
    return this.#ink.face;
  }
}

function total(counts) {
  return counts[0] + counts[1] + counts[2] + counts[3];
}
