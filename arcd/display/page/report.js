// One file, because report.py copies it as a whole into the one HTML file that a report is.
"use strict";
const begun = performance.now();
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  const pad = n => String(n).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

const percent = share => `${(100 * share).toFixed(1)} %`;

// ---- head and summary

document.title = `arcd: job ${data.job.job}, ${data.job.name}`;
$("title").textContent = `Job ${data.job.job}: ${data.job.name}`;
$("subtitle").textContent = data.subtitle;
for (const [name, value] of data.tiles) {
  $("tiles").append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}
$("settings").textContent = JSON.stringify(data.settings, null, 2);

// ---- stages over time

const lanes = {
  rows: [], from: 0, to: data.end, label: 74, row: 22,
  init() {
    for (const stage of ["train", "infer"]) {
      const tracks = data.spans.filter(s => s.stage === stage).map(s => s.track);
      for (let track = 0; track <= Math.max(...tracks, -1); track++) this.rows.push({ stage, track });
    }
    const svg = $("lanes");
    new ResizeObserver(() => this.render()).observe(svg);
    svg.addEventListener("wheel", event => {
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event));
    }, { passive: false });
    let held = null, moved = false;
    svg.addEventListener("pointerdown", event => {
      held = { x: event.clientX, from: this.from };
      moved = false;
    });
    window.addEventListener("pointermove", event => {
      if (!held) return;
      if (Math.abs(event.clientX - held.x) > 4) moved = true;
      if (moved) this.show(held.from - (event.clientX - held.x) / this.scale());
    });
    window.addEventListener("pointerup", () => { held = null; });
    svg.addEventListener("click", event => {
      const task = event.target.dataset && event.target.dataset.task;
      if (task && !moved) tasks.go(task);
    });
    svg.addEventListener("pointerover", event => {
      const title = event.target.querySelector && event.target.querySelector("title");
      if (title) $("span").textContent = title.textContent;
    });
    const moves = {
      in: () => this.zoom(0.5), out: () => this.zoom(2),
      left: () => this.show(this.from - this.width() / 4),
      right: () => this.show(this.from + this.width() / 4),
      all: () => { this.from = 0; this.to = data.end; this.render(); },
    };
    const keys = {
      "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", "0": "all",
    };
    svg.addEventListener("keydown", event => {
      if (keys[event.key]) { event.preventDefault(); moves[keys[event.key]](); }
    });
    $("zoom").addEventListener("click", event => {
      const what = event.target.dataset.do;
      if (what) moves[what]();
    });
  },
  width() { return this.to - this.from; },
  scale() { return ($("lanes").clientWidth - this.label) / this.width(); },
  timeAt(event) {
    const left = $("lanes").getBoundingClientRect().left;
    return this.from + (event.clientX - left - this.label) / this.scale();
  },
  zoom(factor, around = (this.from + this.to) / 2) {
    const width = Math.min(data.end, Math.max(data.end / 10000, this.width() * factor));
    const share = (around - this.from) / this.width();
    this.to = this.from + width;
    this.show(around - share * width);
  },
  show(from) {
    const width = this.width();
    this.from = Math.min(Math.max(0, from), data.end - width);
    this.to = this.from + width;
    this.render();
  },
  render() {
    const svg = $("lanes"), width = svg.clientWidth, height = this.rows.length * this.row + 20;
    if (!width || !data.end) return;
    const scale = this.scale(), x = t => this.label + (t - this.from) * scale;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const found = [];
    const tick = niceStep(this.width() / Math.max(2, width / 90));
    for (let t = Math.ceil(this.from / tick) * tick; t <= this.to; t += tick) {
      found.push(draw("line", { class: "axis", x1: x(t), x2: x(t), y1: 0, y2: height - 16 }));
      found.push(draw("text", { x: x(t) + 2, y: height - 4 }, duration(t)));
    }
    this.rows.forEach(({ stage, track }, i) => {
      const many = this.rows.filter(row => row.stage === stage).length > 1;
      const name = { train: "training", infer: "inference" }[stage] + (many ? ` ${track + 1}` : "");
      found.push(draw("text", { x: 0, y: i * this.row + 14 }, name));
    });
    for (const span of data.spans) {
      if (span.end < this.from || span.begin > this.to) continue;
      const row = this.rows.findIndex(r => r.stage === span.stage && r.track === span.track);
      const left = Math.max(this.label, x(span.begin)), right = Math.min(width, x(span.end));
      const block = draw("rect", {
        class: `${span.stage} ${span.number % 2 ? "odd" : ""}`, x: left, y: row * this.row + 2,
        width: Math.max(1, right - left), height: this.row - 5, "data-task": span.task,
      });
      const took = (span.end - span.begin).toFixed(1);
      const verb = { train: "trained", infer: "sampled" }[span.stage];
      block.append(draw("title", {}, `${span.task} ${verb} for ${took} s from ${duration(span.begin)} on`));
      found.push(block);
      if (right - left > 60) {
        const inside = draw("text", { x: left + 4, y: row * this.row + 15 }, span.task);
        inside.style.cssText = "fill: var(--card); pointer-events: none";
        found.push(inside);
      }
    }
    for (const t of data.deaths) {
      if (t < this.from || t > this.to) continue;
      const line = draw("line", { class: "death", x1: x(t), x2: x(t), y1: 0, y2: height - 16 });
      line.append(draw("title", {}, `the daemon was started again after ${duration(t)}`));
      found.push(line);
    }
    svg.replaceChildren(...found);
  },
};

function niceStep(wanted) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200];
  return steps.find(step => step >= wanted) || 86400;
}

// ---- charts

const CHART = { width: 420, height: 240, left: 44, bottom: 28, right: 8, top: 8 };

function axes(svg, xs, ys, xLabel, yLabel) {
  const c = CHART;
  svg.setAttribute("viewBox", `0 0 ${c.width} ${c.height}`);
  for (const [at, text] of xs) {
    svg.append(draw("line", { class: "axis", x1: at, x2: at, y1: c.top, y2: c.height - c.bottom }));
    svg.append(draw("text", { x: at, y: c.height - c.bottom + 12, "text-anchor": "middle" }, text));
  }
  for (const [at, text] of ys) {
    svg.append(draw("line", { class: "axis", x1: c.left, x2: c.width - c.right, y1: at, y2: at }));
    // No number where the label of the axis is.
    if (at > c.top + 14) svg.append(draw("text", { x: c.left - 4, y: at + 4, "text-anchor": "end" }, text));
  }
  svg.append(draw("text", { x: c.width - c.right, y: c.height - 3, "text-anchor": "end" }, xLabel));
  svg.append(draw("text", { x: 2, y: c.top + 4 }, yLabel));
}

function nothing(svg, text) {
  svg.setAttribute("viewBox", `0 0 ${CHART.width} 40`);
  svg.append(draw("text", { x: 4, y: 24 }, text));
}

function drawLosses() {
  const svg = $("losses"), c = CHART;
  const curves = data.tasks.map(task => task.losses).filter(curve => curve.length > 1);
  if (!curves.length) return nothing(svg, "nothing was trained");
  const steps = Math.max(...curves.map(curve => curve[curve.length - 1][0]));
  const values = curves.flat().map(point => Math.max(1e-4, point[1]));
  const low = Math.log10(values.reduce((a, b) => Math.min(a, b)));
  const high = Math.max(low + 0.1, Math.log10(values.reduce((a, b) => Math.max(a, b))));
  const x = step => c.left + step / steps * (c.width - c.left - c.right);
  const y = loss => c.top + (high - Math.log10(Math.max(1e-4, loss))) / (high - low)
    * (c.height - c.top - c.bottom);
  const marks = [0.001, 0.01, 0.1, 0.3, 1, 3, 10].filter(v => Math.log10(v) >= low && Math.log10(v) <= high);
  axes(svg, [0, 0.5, 1].map(s => [x(s * steps), String(Math.round(s * steps))]),
    marks.map(v => [y(v), String(v)]), "step", "nats a token");
  for (const curve of curves.slice(0, 300)) {
    svg.append(draw("polyline", { class: "curve", points: curve.map(p => `${x(p[0])},${y(p[1])}`).join(" ") }));
  }
  const byStep = new Map();
  for (const [step, loss] of curves.flat()) {
    if (!byStep.has(step)) byStep.set(step, []);
    byStep.get(step).push(loss);
  }
  const median = [...byStep].sort((a, b) => a[0] - b[0]).filter(([, all]) => 2 * all.length >= curves.length)
    .map(([step, all]) => `${x(step)},${y(all.sort((a, b) => a - b)[all.length >> 1])}`);
  svg.append(draw("polyline", { class: "curve median", points: median.join(" ") }));
}

function drawTimes() {
  const svg = $("times"), c = CHART, points = [];
  for (const task of data.tasks) for (const stage of ["train", "infer"]) {
    const predicted = task.predicted && task.predicted[stage], taken = task.taken && task.taken[stage];
    if (predicted > 0 && taken > 0) points.push({ task: task.id, stage, predicted, taken });
  }
  if (!points.length) return nothing(svg, "nothing was predicted");
  const all = points.flatMap(p => [p.predicted, p.taken]).map(Math.log10);
  const low = all.reduce((a, b) => Math.min(a, b)) - 0.05, high = all.reduce((a, b) => Math.max(a, b)) + 0.05;
  const x = v => c.left + (Math.log10(v) - low) / (high - low) * (c.width - c.left - c.right);
  const y = v => c.height - c.bottom - (Math.log10(v) - low) / (high - low) * (c.height - c.top - c.bottom);
  const marks = [0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 10000].filter(v => Math.log10(v) > low && Math.log10(v) < high);
  axes(svg, marks.map(v => [x(v), String(v)]), marks.map(v => [y(v), String(v)]), "predicted s", "taken s");
  const [a, b] = [10 ** low, 10 ** high];
  svg.append(draw("line", { class: "axis", x1: x(a), y1: y(a), x2: x(b), y2: y(b) }));
  for (const p of points) {
    const shape = p.stage === "train"
      ? draw("circle", { cx: x(p.predicted), cy: y(p.taken), r: 3.5 })
      : draw("rect", { x: x(p.predicted) - 3, y: y(p.taken) - 3, width: 6, height: 6 });
    shape.setAttribute("class", p.stage);
    const verb = { train: "training", infer: "sampling" }[p.stage];
    shape.append(draw("title", {}, `${p.task}, ${verb}: predicted ${p.predicted.toFixed(1)} s, took ${p.taken.toFixed(1)} s`));
    svg.append(shape);
  }
  svg.append(draw("text", { x: c.left + 6, y: c.top + 16 }, "● training  ■ sampling"));
}

function drawLedger() {
  if (!data.ledger) { $("ledger").append("The daemon had no time to write it down."); return; }
  const kinds = [...new Set(Object.values(data.ledger.lanes).flatMap(resource => Object.keys(resource)))]
    .filter(kind => kind !== "load" && kind !== "idle");
  const head = make("tr", {}, make("th", {}, "resource"), ...[...kinds, "idle"].map(k => make("th", {}, k)));
  const table = make("table", {}, head);
  for (const [resource, spent] of Object.entries(data.ledger.lanes)) {
    const cells = [...kinds, "idle"].map(k => make("td", {}, spent[k] === undefined ? "" : spent[k].toFixed(1)));
    table.append(make("tr", {}, make("td", {}, resource), ...cells));
  }
  const outside = percent(data.ledger.outside_steps);
  $("ledger").append(table, make("p", { class: "quiet" },
    `Seconds of the daemon's life: start-up ${data.ledger.loading.toFixed(1)}, then ` +
    `${data.ledger.solving.toFixed(1)}, ${outside} of them outside training and engine steps.`));
}

// ---- grids

const grids = {
  palette: "arc",
  init() {
    for (const name of [...Object.keys(data.palettes), "digits"]) {
      $("palette").append(make("option", { value: name }, { arc: "ARC", colourblind: "colour-blind", digits: "digits only" }[name]));
    }
    $("palette").addEventListener("change", event => {
      this.palette = event.target.value;
      document.querySelectorAll("canvas").forEach(canvas => this.paint(canvas));
    });
  },
  of(text, truth) {
    const rows = text.split("/");
    const canvas = make("canvas", { role: "img", "aria-label": `${rows.length} by ${rows[0].length}: ${text}` });
    canvas.grid = rows;
    canvas.truth = truth ? truth.split("/") : null;
    this.paint(canvas);
    return canvas;
  },
  paint(canvas) {
    const rows = canvas.grid, height = rows.length, width = rows[0].length;
    const size = Math.max(5, Math.min(16, Math.floor(160 / Math.max(width, height))));
    const dense = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    canvas.width = width * size * dense;
    canvas.height = height * size * dense;
    canvas.style.width = `${width * size}px`;
    pen.scale(dense, dense);
    const colours = data.palettes[this.palette];
    pen.font = `${size - 1}px monospace`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) {
      const cell = rows[r][c], x = c * size, y = r * size;
      pen.fillStyle = colours ? colours[cell] : "#ffffff";
      pen.fillRect(x, y, size, size);
      pen.strokeStyle = "#777777";
      pen.lineWidth = 0.5;
      pen.strokeRect(x, y, size, size);
      if (!colours) {
        pen.fillStyle = "#000000";
        pen.fillText(cell, x + size / 2, y + size / 2);
      }
      const same = canvas.truth && canvas.truth.length === height && canvas.truth[0].length === width;
      if (same && canvas.truth[r][c] !== cell) {
        for (const [style, line] of [["#000000", 3], ["#ffffff", 1.2]]) {
          pen.strokeStyle = style;
          pen.lineWidth = line;
          pen.beginPath();
          pen.moveTo(x + 2, y + 2); pen.lineTo(x + size - 2, y + size - 2);
          pen.moveTo(x + size - 2, y + 2); pen.lineTo(x + 2, y + size - 2);
          pen.stroke();
        }
      }
    }
  },
};

// ---- tasks

const KINDS = {
  all: () => true,
  solved: task => task.right === 1,
  unsolved: task => task.right !== null && task.right < 1,
  doubtful: task => task.doubtful,
  failed: task => task.failed,
  open: task => task.phase !== "answered",
};

const tasks = {
  kind: "all", cards: new Map(), at: -1,
  init() {
    for (const kind of Object.keys(KINDS)) {
      const count = data.tasks.filter(KINDS[kind]).length;
      if (!count && kind !== "all") continue;
      const button = make("button", { "data-kind": kind, "aria-pressed": kind === "all" }, `${kind} ${count}`);
      button.addEventListener("click", () => { this.kind = kind; this.filter(); });
      $("filters").append(button);
    }
    const seen = new IntersectionObserver(entries => {
      for (const entry of entries) if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        this.fill(entry.target);
      }
    }, { rootMargin: "600px" });
    for (const task of data.tasks) {
      const card = make("article", { id: `task-${task.id}`, tabindex: "-1" }, this.head(task));
      card.task = task;
      this.cards.set(task.id, card);
      seen.observe(card);
    }
    $("find").addEventListener("input", () => this.filter());
    $("order").addEventListener("change", () => this.sort());
    document.addEventListener("keydown", event => {
      if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") { event.preventDefault(); $("find").focus(); }
      if (event.key === "j") this.step(1);
      if (event.key === "k") this.step(-1);
    });
    this.sort();
  },
  head(task) {
    const words = [];
    if (task.right === 1) words.push(["solved", "✓ solved"]);
    else if (task.right !== null) words.push(["unsolved", `✗ ${percent(task.right)} of its tests solved`]);
    if (task.failed) words.push(["failed", "failed: no valid answer"]);
    else if (task.doubtful) words.push(["doubtful", "doubtful"]);
    if (task.phase !== "answered") words.push(["quiet", task.phase]);
    if (task.samples) words.push(["quiet", `${task.samples - task.invalid} of ${task.samples} samples valid`]);
    for (const [stage, verb] of [["train", "trained"], ["infer", "sampled"]]) {
      const taken = task.taken && task.taken[stage], predicted = task.predicted && task.predicted[stage];
      if (taken) words.push(["quiet", `${verb} ${taken.toFixed(1)} s` + (predicted ? ` (predicted ${predicted.toFixed(1)})` : "")]);
    }
    if (task.losses.length) words.push(["quiet", `loss ${task.losses[task.losses.length - 1][1].toFixed(3)}`]);
    return make("header", {}, make("h3", {}, task.id), ...words.map(([kind, text]) => make("span", { class: kind }, text)));
  },
  fill(card) {
    const task = card.task;
    for (const note of task.notes) card.append(make("p", { class: "doubtful" }, note));
    const pairs = task.train.map(([input, output]) => make("div", { class: "pair" }, grids.of(input), "→", grids.of(output)));
    card.append(make("h4", {}, "demonstrations"), make("div", { class: "grids" }, ...pairs));
    task.tests.forEach((test, i) => {
      const truth = task.truth && task.truth[i];
      const shown = [this.figure("input", test)];
      if (truth) shown.push(this.figure("truth", truth));
      (task.ranked[i] || []).forEach((vote, place) => {
        const name = place < 2 ? `attempt ${place + 1}` : `candidate ${place + 1}`;
        const verdict = truth ? (truth === vote.grid ? " ✓" : " ✗") : "";
        shown.push(this.figure(`${name}${verdict}, ${vote.votes} vote${vote.votes === 1 ? "" : "s"}, ${vote.likely}`, vote.grid, truth));
      });
      const others = task.others[i] ? `, and ${task.others[i]} other candidates` : "";
      card.append(make("h4", {}, `test ${i + 1} of ${task.tests.length}${others}`), make("div", { class: "grids" }, ...shown));
    });
  },
  figure(caption, grid, truth) {
    return make("figure", {}, grids.of(grid, truth), make("figcaption", {}, caption));
  },
  sort() {
    const by = {
      file: () => 0,
      slow: (a, b) => b.seconds - a.seconds,
      sure: (a, b) => b.agreement - a.agreement,
    }[$("order").value];
    $("tasks").replaceChildren(...[...data.tasks].sort(by).map(task => this.cards.get(task.id)));
    this.filter();
  },
  filter() {
    const wanted = $("find").value.trim().toLowerCase();
    let shown = 0;
    for (const task of data.tasks) {
      const fits = KINDS[this.kind](task) && task.id.toLowerCase().includes(wanted);
      this.cards.get(task.id).hidden = !fits;
      shown += fits;
    }
    document.querySelectorAll("#filters button").forEach(button =>
      button.setAttribute("aria-pressed", button.dataset.kind === this.kind));
    $("none").hidden = shown > 0;
    this.at = -1;
  },
  step(by) {
    const shown = [...$("tasks").children].filter(card => !card.hidden);
    if (!shown.length) return;
    this.at = Math.min(shown.length - 1, Math.max(0, this.at + by));
    shown[this.at].focus({ preventScroll: true });
    shown[this.at].scrollIntoView({ block: "start" });
  },
  go(id) {
    if (this.cards.get(id).hidden) { this.kind = "all"; $("find").value = ""; this.filter(); }
    this.cards.get(id).focus({ preventScroll: true });
    this.cards.get(id).scrollIntoView({ block: "start" });
  },
};

$("theme").addEventListener("change", event => {
  document.documentElement.dataset.theme = event.target.value;
});

grids.init();
lanes.init();
drawLosses();
drawTimes();
drawLedger();
tasks.init();
document.documentElement.dataset.ready = (performance.now() - begun).toFixed(0);
