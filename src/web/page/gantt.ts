// What the stages did in the last seconds: a track for each, forward passes strong, backward passes pale, steps as ticks.
// Asked for only while it is in sight, since a stage that is timed is a little slower.

import type { SpansAnswer } from "../wire.ts";
import { type Colours, colourOf, themeColour } from "./colours.ts";
import { choice, h, setText } from "./dom.ts";
import type { Model } from "./model.ts";

const EVERY_MS = 1000;
const [TRACK, GAP, LABELS, FOOT] = [34, 10, 64, 20];

type Span = SpansAnswer["stages"][number][number];

export class Gantt {
  readonly tools: readonly HTMLElement[];
  readonly element: HTMLElement;
  readonly #canvas = h("canvas", { role: "img", "aria-label": "The pipeline" });
  readonly #text = h("p", { class: "quiet" }, "Nothing has been recorded yet.");
  #answer: SpansAnswer = { names: [], stages: [] };
  #seconds = 2;
  #isInSight = false;
  #isPaused = false;

  constructor(
    private readonly model: Model,
    private readonly colours: Colours,
    private readonly ask: () => Promise<SpansAnswer>,
  ) {
    const hold = h("button", { type: "button", "aria-pressed": "false" }, "Hold");
    hold.addEventListener("click", () => {
      this.#isPaused = !this.#isPaused;
      hold.setAttribute("aria-pressed", String(this.#isPaused));
    });
    this.tools = [
      choice(
        "Time shown",
        [
          ["0.5", "½ s"],
          ["2", "2 s"],
          ["10", "10 s"],
          ["60", "1 min"],
        ],
        "2",
        (of) => {
          this.#seconds = Number(of);
          this.draw();
        },
      ),
      hold,
    ];
    this.element = h("div", { class: "gantt" }, this.#canvas, this.#text);
    new IntersectionObserver((entries) => {
      this.#isInSight = entries.some(({ isIntersecting }) => isIntersecting);
    }).observe(this.#canvas);
    new ResizeObserver(() => this.draw()).observe(this.element);
    setInterval(() => void this.#refresh(), EVERY_MS);
  }

  async #refresh(): Promise<void> {
    if (!this.#isInSight || this.#isPaused || document.hidden || !this.model.can("spans")) return;
    if (this.model.run?.state === "over") return;
    const answer = await this.ask().catch(() => null); // the events say what is wrong with the server
    if (!answer || answer.stages.every((spans) => spans.length === 0)) return;
    this.#answer = answer;
    this.draw();
  }

  draw(): void {
    const { stages } = this.#answer;
    const rows = Math.max(1, stages.length);
    const [width, height] = [this.element.clientWidth, rows * (TRACK + GAP) + FOOT];
    const canvas = this.#canvas;
    const ctx = canvas.getContext("2d");
    if (!ctx || width === 0) return;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    canvas.style.height = `${height}px`;
    ctx.scale(devicePixelRatio, devicePixelRatio);
    const [quiet, well, line, ink] = (["--quiet", "--well", "--line", "--ink"] as const).map(themeColour);
    const to = Math.max(0, ...stages.map((spans) => spans.at(-1)?.end ?? 0));
    const from = to - 1000 * this.#seconds;
    const x = (time: number) => LABELS + ((Math.max(time, from) - from) / (to - from)) * (width - LABELS);
    ctx.font = "11px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    for (let i = 0; i < rows; i++) {
      const top = i * (TRACK + GAP);
      ctx.fillStyle = well!;
      ctx.fillRect(LABELS, top, width - LABELS, TRACK);
      ctx.fillStyle = quiet!;
      ctx.fillText(`stage ${i}`, 0, top + TRACK / 2);
    }
    for (const [i, spans] of stages.entries())
      this.#track(
        ctx,
        spans.filter(({ end }) => end > from),
        i * (TRACK + GAP),
        x,
        ink!,
      );
    ctx.fillStyle = quiet!;
    ctx.strokeStyle = line!;
    const marks = 4;
    for (let i = 0; i <= marks; i++) {
      ctx.textAlign = i === 0 ? "left" : i === marks ? "right" : "center";
      const seconds = -this.#seconds * (1 - i / marks);
      ctx.fillText(
        i === marks ? "now" : `${Number(seconds.toPrecision(3))} s`,
        LABELS + (i / marks) * (width - LABELS),
        height - 8,
      );
    }
    ctx.textAlign = "left";
    this.#describe(from, to);
  }

  #track(ctx: CanvasRenderingContext2D, spans: readonly Span[], top: number, x: (time: number) => number, ink: string): void {
    for (const { kind, start, end, adapters } of spans) {
      const left = x(start);
      const width = Math.max(1, x(end) - left - 0.5);
      if (kind === "step") {
        ctx.fillStyle = ink;
        ctx.fillRect(left, top, 1.5, TRACK);
        continue;
      }
      if (kind === "send" || kind === "receive") continue;
      const lanes = Math.max(1, adapters.length);
      for (let lane = 0; lane < lanes; lane++) {
        const adapter = adapters[lane];
        ctx.globalAlpha = kind === "forward" ? 1 : kind === "backward" ? 0.55 : 0.3;
        ctx.fillStyle = adapter === undefined ? ink : this.#colour(this.#answer.names[adapter]!);
        ctx.fillRect(left, top + (lane * TRACK) / lanes, width, TRACK / lanes);
      }
      ctx.globalAlpha = 1;
    }
  }

  /** Those without a colour of their own share greys. */
  #colour(label: string): string {
    const adapter = this.model.shown.find((of) => of.label === label || of.name === label);
    const slot = adapter ? this.colours.slotOf(adapter.name) : null;
    if (slot !== null) return colourOf(slot);
    return themeColour("--grey-curve");
  }

  #describe(from: number, to: number): void {
    const first = Math.min(...this.#answer.stages.map((spans) => spans[0]?.start ?? to));
    const seen = Math.max(1, to - Math.max(from, first));
    const busy = this.#answer.stages.map((spans) => {
      const work = spans.filter(({ kind, end }) => kind !== "send" && kind !== "receive" && end > from);
      const total = work.reduce((sum, { start, end }) => sum + end - Math.max(start, from), 0);
      return `${Math.min(100, Math.round((100 * total) / seen))} %`;
    });
    if (busy.length === 0) return;
    const words = busy.map((share, stage) => `stage ${stage} is busy for ${share} of the time`).join(", ");
    this.#canvas.setAttribute("aria-label", `The pipeline: ${words}`);
    setText(this.#text, `Strong: forward. Pale: backward. Ticks: optimizer steps. Busy: ${busy.join(", ")}.`);
  }
}
