// Curves of all adapters together: those that are shown in colours, by uPlot, and all others thin and grey below
// them. What is drawn is bounded whatever the number of adapters.

import uPlot from "uplot";
import { type Colours, colourOf, themeColour } from "./colours.ts";
import { choice, h, setText } from "./dom.ts";
import { count, number, rate } from "./format.ts";
import { type Adapter, type ChartMeasure, type Model, pointsOf } from "./model.ts";

/** Points of grey curves in all. */
const MOST_GREY = 40_000;
/** Between marks of steps, or of shares in percent: 1, 2 and 5 times powers of ten. */
const STEPS = Array.from({ length: 27 }, (_, i) => [1, 2, 5][i % 3]! * 10 ** Math.floor(i / 3));
const LEAST_HEIGHT = 220;

type XY = { readonly xs: number[]; readonly ys: number[] };
type Line = XY & { readonly adapter: Adapter };

const TITLES: Readonly<Record<ChartMeasure, string>> = {
  ...{ loss: "Training loss", heldOut: "Held-out loss", gradNorm: "Gradient norm", tokensPerSecond: "Tokens/s" },
};

export class Chart {
  readonly tools: readonly HTMLElement[];
  readonly element = h("div", { class: "chart" });
  readonly #plot = h("div", { class: "plot", role: "img" });
  readonly #legend = h("ul", { class: "legend", "aria-label": "Curves in colours" });
  readonly #rest = h("p", { class: "quiet" });
  #measure: ChartMeasure = "loss";
  #isShare = false;
  #isLog = false;
  #smoothing = 0;
  #uplot: uPlot | null = null;
  #look = "";
  #lines: readonly Line[] = [];
  #grey: readonly XY[] = [];
  #zoom: [number, number] | null = null;
  #bounds: { x: [number, number]; y: [number, number] } = { x: [0, 1], y: [0, 1] };

  constructor(
    private readonly model: Model,
    private readonly colours: Colours,
    private readonly select: (name: string) => void,
  ) {
    const redraw = () => this.draw();
    const measures = (["loss", "heldOut", "gradNorm", "tokensPerSecond"] as const).map((of) => [of, TITLES[of]] as const);
    const smooth = (event: Event) => {
      this.#smoothing = Number((event.target as HTMLInputElement).value);
      redraw();
    };
    this.tools = [
      choice("What is drawn", measures, this.#measure, (of) => {
        this.#measure = of;
        redraw();
      }),
      choice(
        "Horizontal axis",
        [
          ["step", "by step"],
          ["share", "by share"],
        ],
        "step",
        (of) => {
          this.#isShare = of === "share";
          redraw();
        },
      ),
      choice(
        "Vertical axis",
        [
          ["linear", "linear"],
          ["log", "log"],
        ],
        "linear",
        (of) => {
          this.#isLog = of === "log";
          redraw();
        },
      ),
      h(
        "label",
        { class: "slider" },
        "smooth ",
        h("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: 0, oninput: smooth }),
      ),
    ];
    this.element.append(this.#plot, this.#legend, this.#rest);
    new ResizeObserver(() => this.#resize()).observe(this.#plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  draw(): void {
    const shown = this.model.shown;
    this.colours.keep(shown.map(({ name }) => name));
    const isShown = new Set(shown.map(({ name }) => name));
    const others = this.model.ranking.filter(({ name }) => !isShown.has(name));
    const each = Math.max(8, Math.floor(MOST_GREY / Math.max(1, others.length)));
    this.#lines = shown.map((adapter) => ({ adapter, ...this.#curveOf(adapter) }));
    this.#grey = others.map((adapter) => thinned(this.#curveOf(adapter), each));
    this.#bounds = boundsOf([...this.#lines, ...this.#grey], this.#isLog);
    this.#render();
    this.#describe(others.length);
  }

  #curveOf(adapter: Adapter): XY {
    const points = pointsOf(adapter, this.#measure);
    const scale = this.#isShare && adapter.steps > 0 ? 100 / adapter.steps : 1;
    let mean: number | null = null;
    const [xs, ys]: [number[], number[]] = [[], []];
    for (const [step, value] of points) {
      if (this.#isLog && value <= 0) continue;
      mean = mean === null ? value : this.#smoothing * mean + (1 - this.#smoothing) * value;
      xs.push(step * scale);
      ys.push(mean);
    }
    return { xs, ys };
  }

  #render(): void {
    const slots = this.#lines.map(({ adapter }) => this.colours.slotOf(adapter.name)!);
    const tables = this.#lines.map(({ xs, ys }) => [xs, ys] as [number[], number[]]);
    const data = tables.length > 0 ? uPlot.join(tables) : ([[], []] as uPlot.AlignedData);
    const theme = themeColour("--ink");
    const look = [this.#isLog, this.#isShare, this.#measure, theme, ...slots].join();
    if (look !== this.#look || !this.#uplot) {
      this.#uplot?.destroy();
      this.#uplot = new uPlot(this.#options(slots), data, this.#plot);
      this.#look = look;
    } else this.#uplot.setData(data);
    const { dataset } = this.#plot;
    dataset["draws"] = `${Number(dataset["draws"] ?? 0) + 1}`;
    dataset["points"] = `${[...this.#lines, ...this.#grey].reduce((total, { xs }) => total + xs.length, 0)}`;
  }

  #options(slots: readonly number[]): uPlot.Options {
    const [ink, grid] = [themeColour("--quiet"), themeColour("--line")];
    const axis = { stroke: ink, font: "11px system-ui, sans-serif", grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    const show = this.#measure === "heldOut" ? { show: true, size: 5 } : { show: false };
    const { width, height } = this.#size();
    return {
      ...{ width, height, legend: { show: false }, padding: [12, 12, 0, 0] },
      cursor: { y: false, drag: { setScale: false, x: true, y: false }, points: { size: 7 }, bind: { dblclick: this.#whole } },
      scales: {
        x: { time: false, range: () => this.#zoom ?? this.#bounds.x },
        y: { distr: this.#isLog ? 3 : 1, range: () => this.#bounds.y },
      },
      axes: [
        {
          ...axis,
          size: 32,
          incrs: STEPS,
          values: (_, ticks) => ticks.map((tick) => (this.#isShare ? `${tick} %` : count(tick))),
        },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : this.#valueText(tick))) },
      ],
      series: [
        {},
        ...slots.map((slot) => ({ stroke: () => colourOf(slot), width: 1.8, spanGaps: true, points: show })),
        ...(slots.length === 0 ? [{}] : []),
      ],
      hooks: { drawAxes: [(u) => this.#drawGrey(u)], setCursor: [(u) => this.#values(u)], setSelect: [(u) => this.#zoomTo(u)] },
    };
  }

  /** To the part that was dragged over; a double click shows all again. */
  #zoomTo(u: uPlot): void {
    const { left, width } = u.select;
    if (width < 4) return;
    const [min, max] = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
    this.#zoom = [min, max];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    u.setScale("x", { min, max });
  }

  readonly #whole: uPlot.Cursor.MouseListenerFactory = (u) => () => {
    this.#zoom = null;
    const [min, max] = this.#bounds.x;
    u.setScale("x", { min, max });
    return null;
  };

  #drawGrey(u: uPlot): void {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.strokeStyle = themeColour("--grey-curve");
    ctx.globalAlpha = Math.max(0.07, Math.min(0.55, 16 / Math.max(1, this.#grey.length)));
    ctx.lineWidth = devicePixelRatio;
    for (const { xs, ys } of this.#grey) {
      ctx.beginPath();
      for (const [i, x] of xs.entries()) ctx.lineTo(u.valToPos(x, "x", true), u.valToPos(ys[i]!, "y", true));
      ctx.stroke();
    }
    ctx.restore();
  }

  #size() {
    const { clientWidth, clientHeight } = this.#plot;
    return { width: Math.max(200, clientWidth), height: Math.max(LEAST_HEIGHT, clientHeight) };
  }

  #resize(): void {
    const size = this.#size();
    const of = this.#uplot;
    if (of && (of.width !== size.width || of.height !== size.height)) of.setSize(size);
  }

  #valueText(value: number): string {
    return this.#measure === "tokensPerSecond"
      ? rate(value)
      : Math.abs(value) >= 1
        ? String(Number(value.toPrecision(4)))
        : number(value).replace(/\.?0+$/, "");
  }

  /** The legend: values where the cursor is, else the last ones. */
  #values(u: uPlot | null): void {
    const { left = -1 } = u?.cursor ?? {};
    const at = u && left >= 0 ? u.posToVal(left, "x") : Number.POSITIVE_INFINITY;
    for (const [i, { xs, ys }] of this.#lines.entries()) {
      const place = nearest(xs, at);
      const cell = this.#legend.children[i]?.querySelector("b");
      if (cell)
        setText(cell, place === null ? "–" : this.#measure === "tokensPerSecond" ? rate(ys[place]!) : number(ys[place]!));
    }
  }

  #describe(others: number): void {
    const names = this.#lines.map(({ adapter }) => adapter);
    const known = [...this.#legend.children].map((item) => (item as HTMLElement).dataset["name"]);
    if (names.map(({ name }) => name).join() !== known.join())
      this.#legend.replaceChildren(
        ...names.map(({ name, label }) => {
          const choose = () => this.select(name);
          const dot = h("i", { class: `dot s${this.colours.slotOf(name)}`, "aria-hidden": "true" });
          return h(
            "li",
            { "data-name": name },
            h("button", { type: "button", onclick: choose }, dot, h("span", {}, label), h("b")),
          );
        }),
      );
    for (const [i, { name }] of names.entries()) {
      const dot = this.#legend.children[i]!.querySelector("i")!;
      dot.className = `dot s${this.colours.slotOf(name)}`;
    }
    this.#values(this.#uplot);
    const greys = others === 0 ? "" : `${count(others)} more in grey: pin adapters in the table to give them a colour.`;
    setText(this.#rest, greys);
    const last = this.#lines.flatMap(({ adapter: { label }, ys }) => (ys.length > 0 ? [`${label} ${number(ys.at(-1)!)}`] : []));
    this.#plot.setAttribute(
      "aria-label",
      `${TITLES[this.#measure]} of ${count(others + names.length)} ${others + names.length === 1 ? "adapter" : "adapters"}. Last: ${last.join(", ")}`,
    );
  }
}

/** The point whose x is the nearest; null of none. */
function nearest(xs: readonly number[], at: number): number | null {
  if (xs.length === 0) return null;
  let [low, high] = [0, xs.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle]! < at) low = middle + 1;
    else high = middle;
  }
  return low > 0 && Math.abs(xs[low - 1]! - at) < Math.abs(xs[low]! - at) ? low - 1 : low;
}

function thinned({ xs, ys }: XY, most: number): XY {
  if (xs.length <= most) return { xs, ys };
  const every = Math.ceil(xs.length / most);
  const keep = (_: number, i: number) => i % every === 0 || i === xs.length - 1;
  return { xs: xs.filter(keep), ys: ys.filter(keep) };
}

/** What all curves are in, but for the highest values of a few: a first step far above all others would flatten the rest. */
function boundsOf(curves: readonly XY[], isLog: boolean): { x: [number, number]; y: [number, number] } {
  let [right, left] = [0, Number.POSITIVE_INFINITY];
  const values: number[] = [];
  for (const { xs, ys } of curves) {
    right = Math.max(right, xs.at(-1) ?? 0);
    left = Math.min(left, xs[0] ?? left);
    for (const y of ys) values.push(y);
  }
  if (values.length === 0) return { x: [0, 1], y: isLog ? [0.1, 1] : [0, 1] };
  const sorted = Float64Array.from(values).sort();
  const low = sorted[0]!;
  const most = sorted.at(-1)!;
  const usual = sorted[Math.floor(0.995 * (sorted.length - 1))]!;
  const high = most > 3 * usual && usual > low ? 1.1 * usual : most;
  const x: [number, number] = [Math.min(left, right), right > left ? right : right + 1];
  if (isLog) return { x, y: [low / 1.08, Math.max(high, low * 1.01) * 1.08] };
  const room = 0.06 * (high - low || Math.abs(high) || 1);
  return { x, y: [low >= 0 ? Math.max(0, low - room) : low - room, high + room] };
}
