// Small parts: numbers of the whole run, memory, notices.

import type { StageFacts } from "../wire.ts";
import { themeColour } from "./colours.ts";
import { h, setAttribute, setText } from "./dom.ts";
import { bytes, clock, count, duration, rate } from "./format.ts";
import type { Model } from "./model.ts";

const RUNNING = /^(training|evaluating|starting|between turns|leaving|at a rung)$/;
const OVER = /^(done|early|dropped|stopped|failed)$/;

export class Tiles {
  readonly element = h("div", { class: "tiles" });
  readonly #values: HTMLElement[] = [];
  readonly #subs: HTMLElement[] = [];
  readonly #spark = h("canvas", { class: "spark", "aria-hidden": "true" });

  constructor(private readonly model: Model) {
    for (const title of ["Adapters", "Tokens/s", "Time left", "Memory"]) {
      const [value, sub] = [h("strong"), h("span", { class: "quiet" })];
      this.#values.push(value);
      this.#subs.push(sub);
      const spark = title === "Tokens/s" ? [this.#spark] : [];
      this.element.append(h("div", { class: "tile" }, h("span", { class: "quiet" }, title), value, sub, ...spark));
    }
  }

  draw(): void {
    const { run, adapters, counts, tokensPerSecond } = this.model;
    if (!run) return;
    const of = (states: RegExp) => [...counts].reduce((sum, [state, n]) => sum + (states.test(state) ? n : 0), 0);
    const [running, over, failed] = [of(RUNNING), of(OVER), counts.get("failed") ?? 0];
    const paused = counts.get("paused") ?? 0;
    const waiting = adapters.size - running - over - paused;
    const groups = [
      [running, "training"],
      [paused, "paused"],
      [waiting, "waiting"],
      [over - failed, "ended"],
      [failed, "failed"],
    ] as const;
    const memory = run.stages.reduce((sum, { memory }) => sum + total(memory), 0);
    const values = [count(adapters.size), rate(tokensPerSecond), duration(run.secondsLeft), bytes(memory)];
    const stages = `${run.stages.length} ${run.stages.length === 1 ? "stage" : "stages"}, ${count(run.slots)} at once`;
    const subs = [
      groups.flatMap(([n, what]) => (n > 0 ? `${count(n)} ${what}` : [])).join(", "),
      "of all adapters",
      `running for ${duration(run.seconds)}`,
      stages,
    ];
    for (const [i, value] of values.entries()) setText(this.#values[i]!, value);
    for (const [i, sub] of subs.entries()) setText(this.#subs[i]!, sub);
    this.#drawSpark();
  }

  #drawSpark(): void {
    const { rates } = this.model;
    const canvas = this.#spark;
    const ctx = canvas.getContext("2d");
    if (!ctx || rates.length < 2) return;
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    [canvas.width, canvas.height] = [width, height];
    const most = Math.max(...rates, 1e-9);
    ctx.strokeStyle = themeColour("--accent");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.beginPath();
    for (const [i, value] of rates.entries()) {
      const [x, y] = [(i / (rates.length - 1)) * width, height - 2 - (value / most) * (height - 4)];
      if (i === 0) ctx.moveTo(x, y);
      else ctx.lineTo(x, y);
    }
    ctx.stroke();
  }
}

const total = (memory: StageFacts["memory"]): number => Object.values(memory).reduce((sum, of) => sum + of, 0);

/** What parts of the memory are for, in the order in which they are drawn. */
const PARTS = ["weights", "adapters", "activations", "workspace", "head", "links", "cache"] as const;

export class Memory {
  readonly element = h("div", { class: "memory" });
  #drawn = "";

  constructor(private readonly model: Model) {}

  draw(): void {
    const stages = this.model.run?.stages ?? [];
    const facts = JSON.stringify(stages);
    if (facts === this.#drawn) return;
    this.#drawn = facts;
    const most = Math.max(...stages.map(({ memory }) => total(memory)), 1);
    this.element.replaceChildren(...stages.map((stage) => stageMemory(stage, most)));
  }
}

function stageMemory({ name, memory, free }: StageFacts, most: number): HTMLElement {
  const parts = PARTS.filter((part) => (memory[part] ?? 0) > 0);
  const bar = h("div", { class: "stack", "aria-hidden": "true" });
  for (const part of parts) {
    const piece = h("i", { class: `m-${part}`, title: `${part}: ${bytes(memory[part]!)}` });
    piece.style.width = `${(100 * memory[part]!) / most}%`;
    bar.append(piece);
  }
  const list = parts.map((part) =>
    h("li", {}, h("i", { class: `dot m-${part}`, "aria-hidden": "true" }), `${part} `, h("b", {}, bytes(memory[part]!))),
  );
  const room = free === null ? "" : ` of ${bytes(free)} free there`;
  return h(
    "div",
    {},
    h("p", {}, name),
    bar,
    h("ul", {}, ...list),
    h("p", { class: "quiet" }, `${bytes(total(memory))} planned${room}`),
  );
}

export class Notices {
  readonly element = h("ol", { class: "notices", tabindex: 0, "aria-label": "Notices, newest first" });
  #drawn = 0;
  #last: unknown = null;

  constructor(private readonly model: Model) {}

  draw(): void {
    const { notices } = this.model;
    if (notices.length === this.#drawn && notices.at(-1) === this.#last) return;
    [this.#drawn, this.#last] = [notices.length, notices.at(-1)];
    const items = [...notices].reverse().map(({ time, adapter, text, isError }) => {
      const item = h(
        "li",
        {},
        h("time", {}, clock(time)),
        h("span", {}, ...(adapter === null ? [] : [h("b", {}, adapter), " "]), text),
      );
      setAttribute(item, "class", isError ? "error" : null);
      return item;
    });
    this.element.replaceChildren(...(items.length > 0 ? items : [h("li", { class: "quiet" }, "Nothing so far.")]));
  }
}
