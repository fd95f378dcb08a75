// The stages over time.

const spans = data.spans.map(([stage, place, number, track, begin, end]) =>
  ({ stage, task: data.tasks[place].id, number, track, begin, end }));

const lanes = {
  rows: [], from: 0, to: data.end, label: 74, row: 22,
  init() {
    for (const stage of ["train", "infer"]) {
      const tracks = spans.filter(s => s.stage === stage).reduce((most, s) => Math.max(most, s.track + 1), 0);
      for (let track = 0; track < tracks; track++) this.rows.push({ stage, track });
    }
    for (const span of spans) {
      span.row = this.rows.findIndex(r => r.stage === span.stage && r.track === span.track);
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
    const painted = this.rows.map(() => 0);  // by row, up to where it is
    for (const span of spans) {
      if (span.end < this.from || span.begin > this.to) continue;
      const row = span.row;
      const left = Math.max(this.label, x(span.begin)), right = Math.min(width, x(span.end));
      if (right <= painted[row]) continue;
      painted[row] = Math.max(right, left + 1);
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
