// A prompt, answered by several adapters side by side.

import type { AnswerPiece } from "../wire.ts";
import { h, setText } from "./dom.ts";
import { eventsOf, type Server } from "./server.ts";

type Named = { readonly name: string; readonly label: string };
/** Models that are asked at once. */
const MOST = 6;

export class Answers {
  readonly element: HTMLElement;
  readonly #prompt = h("textarea", { rows: 3, id: "prompt", placeholder: "A question for the adapters" });
  readonly #most = h("input", { type: "number", min: 1, max: 4096, value: 64, id: "most" });
  readonly #models = h("fieldset", { class: "models" }, h("legend", {}, "Answered by"));
  readonly #ask = h("button", { type: "submit", class: "main" }, "Ask");
  readonly #columns = h("div", { class: "answers", "aria-live": "polite" });
  #known = "";
  #stop: AbortController | null = null;

  constructor(
    private readonly server: Server,
    private readonly failed: (error: unknown) => void,
  ) {
    const onsubmit = (event: Event) => {
      event.preventDefault();
      if (this.#stop) this.#stop.abort();
      else void this.#run();
    };
    this.element = h(
      "form",
      { class: "try", onsubmit },
      h("label", { for: "prompt" }, "Prompt"),
      this.#prompt,
      this.#models,
      h("div", { class: "actions" }, h("label", { for: "most" }, "Tokens at most"), this.#most, this.#ask),
      this.#columns,
    );
  }

  /** Reads which models there are. */
  async refresh(): Promise<void> {
    const { models } = await this.server.json<{ readonly models: readonly Named[] }>("/page/models");
    const names = JSON.stringify(models);
    if (names === this.#known) return;
    this.#known = names;
    const chosen = new Set(this.#chosen().map(({ name }) => name));
    const first = this.#models.firstElementChild!;
    const boxes = models.map(({ name, label }, i) => {
      const box = h("input", {
        type: "checkbox",
        value: name,
        "data-label": label,
        checked: chosen.size > 0 ? chosen.has(name) : i < 3,
      });
      box.addEventListener("change", () => this.#bound());
      return h("label", { title: name }, box, label);
    });
    setText(first, boxes.length > 0 ? "Answered by" : "No adapter trains now, so none can answer");
    this.#models.replaceChildren(first, ...boxes);
    this.#bound();
  }

  #boxes(): HTMLInputElement[] {
    return [...this.#models.querySelectorAll("input")];
  }

  #chosen(): Named[] {
    return this.#boxes().flatMap((box) => (box.checked ? [{ name: box.value, label: box.dataset["label"]! }] : []));
  }

  #bound(): void {
    const isFull = this.#chosen().length >= MOST;
    for (const box of this.#boxes()) box.disabled = isFull && !box.checked;
  }

  async #run(): Promise<void> {
    const [models, prompt] = [this.#chosen(), this.#prompt.value];
    if (prompt === "" || models.length === 0) return;
    const texts = new Map(models.map(({ name }) => [name, h("p", { class: "text" })]));
    this.#columns.replaceChildren(
      ...models.map(({ name, label }) => h("article", { "data-model": name }, h("h3", {}, label), texts.get(name)!)),
    );
    this.#stop = new AbortController();
    setText(this.#ask, "Stop");
    try {
      const body = { prompt, models: models.map(({ name }) => name), max_tokens: Number(this.#most.value) || 64 };
      const response = await this.server.ask("/page/answer", body, this.#stop.signal);
      for await (const { data } of eventsOf(response)) {
        if (data === "[DONE]") break;
        const piece = JSON.parse(data) as AnswerPiece | { readonly error: { readonly message: string } };
        if ("error" in piece) throw new Error(piece.error.message);
        const text = texts.get(piece.model)!;
        text.append(piece.text);
        if (piece.end !== null) text.dataset["end"] = piece.end;
        if (piece.note) text.after(h("small", {}, piece.note));
      }
    } catch (error) {
      if (!this.#stop.signal.aborted) this.failed(error);
    } finally {
      this.#stop = null;
      setText(this.#ask, "Ask");
    }
  }
}
