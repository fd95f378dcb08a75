// The charts: losses, times, the ledger.

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
  const curves = data.curves;
  if (!curves.length) return nothing(svg, "nothing was trained");
  const steps = curves.reduce((most, curve) => Math.max(most, curve[curve.length - 1][0]), 0);
  const values = curves.flat().map(point => Math.max(1e-4, point[1]));
  const low = Math.log10(values.reduce((a, b) => Math.min(a, b)));
  const high = Math.max(low + 0.1, Math.log10(values.reduce((a, b) => Math.max(a, b))));
  const x = step => c.left + step / steps * (c.width - c.left - c.right);
  const y = loss => c.top + (high - Math.log10(Math.max(1e-4, loss))) / (high - low)
    * (c.height - c.top - c.bottom);
  const marks = [0.001, 0.01, 0.1, 0.3, 1, 3, 10].filter(v => Math.log10(v) >= low && Math.log10(v) <= high);
  axes(svg, [0, 0.5, 1].map(s => [x(s * steps), String(Math.round(s * steps))]),
    marks.map(v => [y(v), String(v)]), "step", "nats a token");
  for (const curve of curves) {
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

const MOST_POINTS = 2001;  // odd, so that of a task not always the same stage is drawn

function drawTimes() {
  const svg = $("times"), c = CHART, found = [];
  for (const task of data.tasks) for (const stage of ["train", "infer"]) {
    const predicted = task.predicted && task.predicted[stage], taken = task.taken && task.taken[stage];
    if (predicted > 0 && taken > 0) found.push({ task: task.id, stage, predicted, taken });
  }
  const every = Math.ceil(found.length / MOST_POINTS);
  const points = found.filter((_, i) => i % every === 0);
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
  // From the kinds: a ledger of an earlier version has no sum of its own.
  const handOver = Object.values(data.ledger.lanes).reduce((sum, spent) => sum + (spent["hand-over"] ?? 0), 0);
  const share = percent(data.ledger.solving > 0 ? handOver / data.ledger.solving : 0);
  $("ledger").append(table, make("p", { class: "quiet" },
    `Seconds of the daemon's life: start-up ${data.ledger.loading.toFixed(1)}, then ` +
    `${data.ledger.solving.toFixed(1)}, ${outside} of them outside training and engine steps. ` +
    `Handing adapters over took ${handOver.toFixed(1)}, ${share} of that time.`));
}
