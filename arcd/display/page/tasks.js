// The list of tasks, and the start of it all.

const KINDS = {
  all: () => true,
  solved: task => task.right === 1,
  unsolved: task => task.right !== null && task.right < 1,
  doubtful: task => task.doubtful,
  failed: task => task.failed,
  open: task => task.phase !== "answered",
};

const CARDS = 500;  // on a page

const tasks = {
  kind: "all", list: [], page: 0, at: -1,
  init() {
    for (const kind of Object.keys(KINDS)) {
      const count = data.tasks.filter(KINDS[kind]).length;
      if (!count && kind !== "all") continue;
      const button = make("button", { "data-kind": kind, "aria-pressed": kind === "all" }, `${kind} ${count}`);
      button.addEventListener("click", () => { this.kind = kind; this.filter(); });
      $("filters").append(button);
    }
    this.seen = new IntersectionObserver(entries => {
      for (const entry of entries) if (entry.isIntersecting) {
        this.seen.unobserve(entry.target);
        this.fill(entry.target);
      }
    }, { rootMargin: "600px" });
    data.tasks.forEach((task, place) => { task.place = place; });
    $("find").addEventListener("input", () => this.filter());
    $("order").addEventListener("change", () => this.filter());
    document.addEventListener("keydown", event => {
      if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") { event.preventDefault(); $("find").focus(); }
      if (event.key === "j") this.step(1);
      if (event.key === "k") this.step(-1);
    });
    this.filter();
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
    if (task.loss !== null) words.push(["quiet", `loss ${task.loss.toFixed(3)}`]);
    return make("header", {}, make("h3", {}, task.id), ...words.map(([kind, text]) => make("span", { class: kind }, text)));
  },
  card(task) {
    const card = make("article", { id: `task-${task.id}`, tabindex: "-1" }, this.head(task));
    for (const note of task.notes) card.append(make("p", { class: "doubtful" }, note));
    card.task = task;
    this.seen.observe(card);
    return card;
  },
  async fill(card) {
    let found;
    try {
      found = await packed.at(card.task.place);
    } catch (error) {
      card.append(make("p", { class: "failed" }, `This browser cannot unpack the grids: ${error.message}`));
      return;
    }
    const pairs = found.train.map(([input, output]) => make("div", { class: "pair" }, grids.of(input), "→", grids.of(output)));
    card.append(make("h4", {}, "demonstrations"), make("div", { class: "grids" }, ...pairs));
    found.tests.forEach((test, i) => {
      const truth = found.truth && found.truth[i];
      const shown = [this.figure("input", test)];
      if (truth) shown.push(this.figure("truth", truth));
      (found.ranked[i] || []).forEach((vote, place) => {
        const name = place < 2 ? `attempt ${place + 1}` : `candidate ${place + 1}`;
        const verdict = truth ? (truth === vote.grid ? " ✓" : " ✗") : "";
        shown.push(this.figure(`${name}${verdict}, ${vote.votes} vote${vote.votes === 1 ? "" : "s"}, ${vote.likely}`, vote.grid, truth));
      });
      const others = found.others[i] ? `, and ${found.others[i]} other candidates` : "";
      card.append(make("h4", {}, `test ${i + 1} of ${found.tests.length}${others}`), make("div", { class: "grids" }, ...shown));
    });
  },
  figure(caption, grid, truth) {
    return make("figure", {}, grids.of(grid, truth), make("figcaption", {}, caption));
  },
  filter() {
    const by = {
      file: () => 0,
      slow: (a, b) => b.seconds - a.seconds,
      sure: (a, b) => b.agreement - a.agreement,
    }[$("order").value];
    const wanted = $("find").value.trim().toLowerCase();
    this.list = data.tasks
      .filter(task => KINDS[this.kind](task) && task.id.toLowerCase().includes(wanted)).sort(by);
    document.querySelectorAll("#filters button").forEach(button =>
      button.setAttribute("aria-pressed", button.dataset.kind === this.kind));
    $("none").hidden = this.list.length > 0;
    this.at = -1;
    this.turn(0);
  },
  turn(page) {
    this.page = page;
    this.seen.disconnect();
    const first = page * CARDS, shown = this.list.slice(first, first + CARDS);
    $("tasks").replaceChildren(...shown.map(task => this.card(task)));
    const last = Math.ceil(this.list.length / CARDS) - 1;
    for (const place of document.querySelectorAll(".pages")) {
      place.hidden = last < 1;
      place.replaceChildren();
      if (last < 1) continue;
      const button = (text, wanted, can) => {
        const found = make("button", can ? {} : { disabled: "" }, text);
        found.addEventListener("click", () => { this.at = -1; this.turn(wanted); $("h-tasks").scrollIntoView(); });
        return found;
      };
      const words = `tasks ${first + 1} to ${first + shown.length} of ${this.list.length}`;
      place.append(button("←", page - 1, page > 0), make("output", {}, words), button("→", page + 1, page < last));
    }
  },
  step(by) {
    if (!this.list.length) return;
    const from = this.at < 0 ? this.page * CARDS - (by > 0) : this.at;
    this.show(Math.min(this.list.length - 1, Math.max(0, from + by)));
  },
  go(id) {
    let at = this.list.findIndex(task => task.id === id);
    if (at < 0) {
      this.kind = "all";
      $("find").value = "";
      this.filter();
      at = this.list.findIndex(task => task.id === id);
    }
    this.show(at);
  },
  show(at) {
    this.at = at;
    const page = Math.floor(at / CARDS);
    if (page !== this.page) this.turn(page);
    const card = $("tasks").children[at % CARDS];
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
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
