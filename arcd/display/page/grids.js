// Grids: unpacked and painted.

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

const packed = {
  kept: new Map(), most: 50,
  // The grids of the task at this place.
  async at(place) {
    const number = Math.floor(place / data.packed_together);
    if (!this.kept.has(number)) {
      if (this.kept.size === this.most) this.kept.delete(this.kept.keys().next().value);
      this.kept.set(number, this.unpack(data.packed[number]));
    }
    return (await this.kept.get(number))[place % data.packed_together];
  },
  async unpack(text) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  },
};
