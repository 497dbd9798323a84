// Rank maps through training: a number a matrix, redrawn at each place of the slider.
const RAMP = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
const RANKED = data.runs.map((run, index) => ({ ...run, index })).filter((run) => run.layout !== null);
const DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz";

function ranksAt(run, frame) {
  const coded = run.ranks[frame];
  return typeof coded === "string" ? [...coded].map((digit) => DIGITS.indexOf(digit)) : coded;
}

function largestRank(run) {
  return Math.max(1, ...run.ranks.map((_, frame) => Math.max(...ranksAt(run, frame))));
}

function rampColour(share) {
  const place = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const low = Math.floor(place);
  const high = Math.min(RAMP.length - 1, low + 1);
  return RAMP[low].map((value, index) => Math.round(value + (place - low) * (RAMP[high][index] - value)));
}

const lightness = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b;

// A map is drawn once a run, and its cells are filled again at each pruning.
class RankMap {
  constructor(run, most) {
    this.run = run;
    this.most = most;
    const layout = data.layouts[run.layout];
    const longest = Math.max(...layout.stacks.flatMap((stack) => stack.matrices.map((matrix) => matrix.length)));
    const left = 12 + Math.min(30, longest) * 6.4;
    const [wide, tall] = [30, 26];
    const offsets = [];
    let height = 0;
    for (const stack of layout.stacks) {
      height += 24;
      offsets.push(height);
      height += stack.matrices.length * tall;
    }
    const width = left + wide * Math.max(...layout.stacks.map((stack) => stack.layers)) + 4;
    this.root = element("figure");
    this.root.append(element("figcaption", {}, run.name));
    this.svg = element("svg", { viewBox: `0 0 ${width} ${height + 4}`, width, height: height + 4, role: "img" });
    layout.stacks.forEach((stack, number) => {
      const title = stack.name ? `${stack.name}, layer` : "layer";
      this.svg.append(element("text", { x: left - 8, y: offsets[number] - 7, class: "axis", "text-anchor": "end" }, layout.stacks.length > 1 ? title : "layer"));
      for (let layer = 0; layer < stack.layers; layer += 1) {
        this.svg.append(element("text", { x: left + (layer + 0.5) * wide, y: offsets[number] - 7, class: "axis", "text-anchor": "middle" }, layer));
      }
      stack.matrices.forEach((matrix, row) => {
        this.svg.append(element("text", { x: left - 8, y: offsets[number] + (row + 0.65) * tall, class: "axis", "text-anchor": "end" }, matrix));
      });
    });
    this.cells = layout.cells.map(([stack, row, layer], index) => {
      const [x, y] = [left + layer * wide, offsets[stack] + row * tall];
      const group = element("g", { class: "cell" });
      const title = element("title");
      const box = element("rect", { x: x + 1, y: y + 1, width: wide - 2, height: tall - 2, rx: 3 });
      const text = element("text", { x: x + wide / 2, y: y + tall * 0.66, "text-anchor": "middle", "data-matrix": layout.names[index] });
      group.append(title, box, text);
      this.svg.append(group);
      return { group, title, box, text };
    });
    const scroller = element("div", { class: "wide", role: "region", tabindex: "0", "aria-label": `Rank map of ${run.name}` });
    scroller.append(this.svg);
    this.root.append(scroller);
  }

  // Returns the number of matrices that changed since the pruning before.
  show(frame) {
    const ranks = ranksAt(this.run, frame);
    const before = frame > 0 ? ranksAt(this.run, frame - 1) : ranks;
    const { names } = data.layouts[this.run.layout];
    let changed = 0;
    this.cells.forEach(({ group, title, box, text }, index) => {
      const colour = rampColour(ranks[index] / this.most);
      box.setAttribute("fill", `rgb(${colour.join(",")})`);
      text.textContent = ranks[index];
      text.setAttribute("fill", lightness(colour) > 120 ? "#000" : "#fff");
      group.classList.toggle("changed", ranks[index] !== before[index]);
      title.textContent = `${names[index]}: ${ranks[index]}${ranks[index] === before[index] ? "" : `, before ${before[index]}`}`;
      changed += ranks[index] !== before[index];
    });
    const total = ranks.reduce((a, b) => a + b, 0);
    this.svg.setAttribute("aria-label", `Ranks at step ${this.run.steps[frame]}: ${total} components in ${ranks.length} matrices`);
    return changed;
  }
}

function ordered(values) {
  const sorted = values.map((value, index) => [value, index]).sort(([a], [b]) => a - b);
  const places = new Array(values.length);
  for (let start = 0; start < sorted.length; ) {
    let end = start;
    while (end < sorted.length && sorted[end][0] === sorted[start][0]) end += 1;
    for (let at = start; at < end; at += 1) places[sorted[at][1]] = (start + end - 1) / 2;
    start = end;
  }
  return places;
}

// Spearman's correlation; null where one side is constant.
function correlation(first, second) {
  const [a, b] = [ordered(first), ordered(second)];
  const mean = (a.length - 1) / 2;
  const sum = (x, y) => x.reduce((total, value, index) => total + (value - mean) * (y[index] - mean), 0);
  const scale = Math.sqrt(sum(a, a) * sum(b, b));
  return scale > 0 ? sum(a, b) / scale : null;
}

// The other run's pruning at the same share of its own.
function alike(run, other, frame) {
  return Math.round((frame / Math.max(1, run.steps.length - 1)) * (other.steps.length - 1));
}

class Scrubber {
  constructor() {
    this.maps = [];
    this.timer = null;
    const tasks = [...new Set(RANKED.map((run) => run.task))];
    get("beside").append(element("option", { value: "" }, "none"));
    for (const select of [get("run"), get("beside")]) {
      for (const task of tasks) {
        const group = element("optgroup", { label: task });
        for (const run of RANKED.filter((one) => one.task === task)) group.append(element("option", { value: run.index }, run.name));
        select.append(group);
      }
      select.addEventListener("change", () => this.choose());
    }
    const first = RANKED.find((run) => run.index === data.start) ?? RANKED[0];
    const twin = RANKED.find((run) => run.index !== first.index && run.task === first.task && run.group === first.group);
    get("run").value = String(first.index);
    get("beside").value = twin ? String(twin.index) : "";
    get("beside").closest("label").hidden = RANKED.length < 2;
    get("pruning").addEventListener("input", () => this.show());
    get("play").addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
    this.choose();
  }

  choose() {
    this.pause();
    const chosen = [get("run"), get("beside")].filter((select) => select.value !== "").map((select) => data.runs[Number(select.value)]);
    const most = Math.max(...chosen.map(largestRank));
    this.maps = chosen.map((run) => new RankMap(run, most));
    get("maps").replaceChildren(...this.maps.map((map) => map.root));
    get("most").textContent = most;
    const slider = get("pruning");
    slider.max = chosen[0].steps.length - 1;
    slider.disabled = get("play").disabled = chosen[0].steps.length < 2;
    slider.value = slider.max;
    this.show();
  }

  show() {
    const frame = Number(get("pruning").value);
    const { run } = this.maps[0];
    const frames = this.maps.map((map) => alike(run, map.run, frame));
    frames[0] = frame;
    const [changed] = this.maps.map((map, index) => map.show(frames[index]));
    const total = ranksAt(run, frame).reduce((a, b) => a + b, 0);
    const shown = run.prunings > run.steps.length ? ` (${run.steps.length} of ${run.prunings} are kept in this page)` : "";
    const parts = [`Pruning ${frame + 1} of ${run.steps.length}${shown}, step ${run.steps[frame].toLocaleString("en")}`, `${total.toLocaleString("en")} components`, `${changed} matrices changed`];
    if (this.maps.length > 1 && run.layout === this.maps[1].run.layout) {
      const value = correlation(ranksAt(run, frame), ranksAt(this.maps[1].run, frames[1]));
      parts.push(value === null ? "no rank correlation, for one has all ranks alike" : `rank correlation ${value.toFixed(2)}`);
    }
    get("state").textContent = parts.join(" · ");
    get("pruning").setAttribute("aria-valuetext", parts.slice(0, 2).join(", "));
  }

  play() {
    const slider = get("pruning");
    if (slider.value === slider.max) slider.value = 0;
    get("play").textContent = "❚❚ Pause";
    this.timer = setInterval(() => {
      slider.stepUp();
      this.show();
      if (slider.value === slider.max) this.pause();
    }, Math.max(60, Math.min(500, 8000 / this.maps[0].run.steps.length)));
    this.show();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    get("play").textContent = "▶ Play";
  }
}

if (RANKED.length > 0) new Scrubber();
