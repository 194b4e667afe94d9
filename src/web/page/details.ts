// One adapter: what is known of it, what may be done with it, and the rows that it trains on now.

import type { ControlAsked, RowsAnswer } from "../wire.ts";
import type { Colours } from "./colours.ts";
import { askFor, confirm } from "./dialogs.ts";
import { h, setAttribute, setText } from "./dom.ts";
import { count, duration, number, rate } from "./format.ts";
import type { Adapter, Model } from "./model.ts";

const ROWS_MS = 2000;
const ENDED = /^(done|early|dropped|stopped|failed|saving|saved)$/;

export type DetailsActions = {
  readonly control: (asked: ControlAsked) => Promise<void>;
  readonly rows: (name: string) => Promise<RowsAnswer>;
};

export class Details {
  readonly element: HTMLElement;
  readonly #title = h("h2", { id: "details-title" });
  readonly #pill = h("span", { class: "pill" });
  readonly #facts = h("dl", { class: "facts" });
  readonly #note = h("p", { class: "note" });
  readonly #pause = h("button", { type: "button" }, "Pause");
  readonly #stop = h("button", { type: "button" }, "Stop");
  readonly #fork = h("button", { type: "button" }, "Fork");
  readonly #rows = h("div", { class: "rows", tabindex: 0, role: "group", "aria-label": "Rows trained on now" });
  readonly #rowsTitle = h("h3", {}, "Rows trained on now");
  readonly #actions = h("div", { class: "actions" }, this.#pause, this.#stop, this.#fork);
  readonly #trained = h("div", { class: "trained" });
  #rowsOf: string | null = null;

  constructor(
    private readonly model: Model,
    private readonly colours: Colours,
    private readonly actions: DetailsActions,
  ) {
    this.#pause.addEventListener("click", () => this.#act("pause"));
    this.#stop.addEventListener("click", () => void this.#askStop());
    this.#fork.addEventListener("click", () => void this.#askFork());
    const legend = h(
      "p",
      { class: "quiet" },
      h("mark", {}, "learned"),
      " the loss counts these tokens; the others are only read.",
    );
    this.element = h(
      "section",
      { class: "card", id: "details", "aria-labelledby": "details-title", tabindex: "-1" },
      h("header", {}, this.#title, this.#pill),
      this.#actions,
      this.#facts,
      this.#note,
      this.#trained,
    );
    this.#trained.append(this.#rowsTitle, legend, this.#rows);
    setInterval(() => void this.#refresh(), ROWS_MS);
  }

  get #adapter(): Adapter | null {
    const { selected, ranking } = this.model;
    return (selected === null ? null : this.model.adapters.get(selected)) ?? ranking[0] ?? null;
  }

  draw(): void {
    const adapter = this.#adapter;
    for (const part of [this.#pill, this.#actions, this.#facts, this.#trained]) part.hidden = adapter === null;
    if (!adapter) setText(this.#title, "No adapter yet");
    if (!adapter) return;
    const {
      name,
      label,
      state,
      step,
      steps,
      loss,
      heldOut,
      bestHeldOut,
      gradNorm,
      learningRate,
      tokensPerSecond,
      secondsLeft,
    } = adapter;
    setText(this.#title, label);
    setAttribute(this.#title, "class", `s${this.colours.slotOf(name) ?? "none"}`);
    setText(this.#pill, state);
    setAttribute(this.#pill, "data-state", state);
    const facts: readonly (readonly [string, string])[] = [
      ["Step", `${count(step)} of ${steps > 0 ? count(steps) : "?"}`],
      ["Time left", duration(secondsLeft)],
      ["Loss", number(loss)],
      ["Held-out loss", heldOut === bestHeldOut ? number(heldOut) : `${number(heldOut)} (best ${number(bestHeldOut)})`],
      ["Gradient norm", number(gradNorm)],
      ["Learning rate", number(learningRate)],
      ["Tokens/s", rate(tokensPerSecond)],
    ];
    if (this.#facts.childElementCount !== facts.length)
      this.#facts.replaceChildren(...facts.map(([term]) => h("div", {}, h("dt", {}, term), h("dd"))));
    for (const [i, [, value]] of facts.entries()) setText(this.#facts.children[i]!.lastElementChild!, value);
    setText(this.#note, adapter.note ?? "");
    const isOver = ENDED.test(state) || this.model.run?.state === "over";
    const isPaused = state === "paused" || state === "pausing";
    setText(this.#pause, isPaused ? "Resume" : "Pause");
    this.#pause.hidden = !this.model.can("pause");
    this.#stop.hidden = !this.model.can("stop");
    this.#fork.hidden = !this.model.can("fork");
    this.#trained.hidden = isOver || !this.model.can("rows");
    for (const button of [this.#pause, this.#stop, this.#fork]) button.disabled = isOver;
    if (this.#rowsOf !== name) {
      this.#rowsOf = name;
      this.#rows.replaceChildren();
      void this.#refresh();
    }
  }

  #act(action: "pause" | "stop"): void {
    const adapter = this.#adapter;
    if (!adapter) return;
    const isPaused = adapter.state === "paused" || adapter.state === "pausing";
    void this.actions.control({ action: action === "pause" && isPaused ? "resume" : action, adapter: adapter.name });
  }

  async #askStop(): Promise<void> {
    const adapter = this.#adapter;
    if (!adapter) return;
    const text = "It ends after the step under way, and what it has learned is saved. A stop is final.";
    if (await confirm(`Stop ${adapter.label}?`, text, "Stop"))
      void this.actions.control({ action: "stop", adapter: adapter.name });
  }

  async #askFork(): Promise<void> {
    const adapter = this.#adapter;
    if (!adapter) return;
    const values = await askFor(
      `Fork ${adapter.label}`,
      "A copy continues from here, next to it, with its moments.",
      [
        {
          name: "name",
          label: "Name of the copy",
          value: `${adapter.name}-2`,
          hint: "Letters, digits, '_' and '-'.",
          isNeeded: true,
        },
        {
          name: "set",
          label: "What it has otherwise",
          value: "",
          hint: "As in a recipe: learning_rate = 1e-4, steps = 2000",
          isNeeded: false,
        },
      ],
      "Fork",
    );
    if (values)
      await this.actions.control({ action: "fork", adapter: adapter.name, name: values["name"]!, set: values["set"]! });
  }

  async #refresh(): Promise<void> {
    const adapter = this.#adapter;
    if (!adapter || document.hidden || !this.model.can("rows") || ENDED.test(adapter.state)) return;
    if (this.model.run?.state === "over" || getSelection()?.type === "Range") return; // text that is being copied stays
    const answer = await this.actions.rows(adapter.name).catch(() => null);
    if (!answer || this.#rowsOf !== adapter.name) return;
    setText(this.#rowsTitle, `Rows trained on at step ${count(answer.step)}`);
    this.#rows.replaceChildren(
      ...answer.rows.map((parts) =>
        h("p", {}, ...parts.map(({ isLearned, text }) => (isLearned ? h("mark", {}, text) : document.createTextNode(text)))),
      ),
    );
  }
}
