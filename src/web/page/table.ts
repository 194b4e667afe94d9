// The ranking: one row for each adapter, of which only those in sight are in the document. The keyboard moves a row that is
// marked (arrows, Page, Home, End), opens its details (Enter) and pins it to the charts (space).

import type { Colours } from "./colours.ts";
import { h, setAttribute, setText } from "./dom.ts";
import { count, duration, number, rate } from "./format.ts";
import type { Adapter, Model, SortKey } from "./model.ts";

const ROW = 38;
/** Rows above and below those in sight. */
const MORE = 6;

type Column = {
  readonly key: SortKey;
  readonly title: string;
  readonly kind: string;
  readonly of: (adapter: Adapter) => string;
};

const COLUMNS: readonly Column[] = [
  { key: "label", title: "Adapter", kind: "name", of: ({ label }) => label },
  { key: "state", title: "State", kind: "state", of: ({ state }) => state },
  {
    key: "progress",
    title: "Step",
    kind: "progress",
    of: ({ step, steps }) => `${count(step)} / ${steps > 0 ? count(steps) : "?"}`,
  },
  { key: "loss", title: "Loss", kind: "number", of: ({ loss }) => number(loss) },
  { key: "bestHeldOut", title: "Best held-out", kind: "number", of: ({ bestHeldOut }) => number(bestHeldOut) },
  { key: "gradNorm", title: "Grad norm", kind: "number wide", of: ({ gradNorm }) => number(gradNorm) },
  { key: "learningRate", title: "Learning rate", kind: "number wide extra", of: ({ learningRate }) => number(learningRate) },
  { key: "tokensPerSecond", title: "Tokens/s", kind: "number wide", of: ({ tokensPerSecond }) => rate(tokensPerSecond) },
  { key: "secondsLeft", title: "Left", kind: "number wide", of: ({ secondsLeft }) => duration(secondsLeft) },
];
/** Values of which more is better: sorted downwards first. */
const DOWN: readonly SortKey[] = ["progress", "tokensPerSecond"];

type Row = { readonly row: HTMLTableRowElement; readonly pin: HTMLInputElement; readonly cells: readonly HTMLElement[] };

export type TableActions = { readonly select: (name: string) => void; readonly changed: () => void };

export class Table {
  readonly element: HTMLElement;
  readonly tools: readonly HTMLElement[];
  readonly #body = h("tbody");
  readonly #above = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: COLUMNS.length + 1 }));
  readonly #below = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: COLUMNS.length + 1 }));
  readonly #table: HTMLTableElement;
  readonly #scroll: HTMLElement;
  readonly #heads: readonly HTMLElement[];
  readonly #states = h("select", { "aria-label": "State" });
  readonly #found = h("span", { class: "quiet", role: "status" });
  readonly #rows: Row[] = [];
  /** The row that the keyboard has marked. */
  #marked: string | null = null;

  constructor(
    private readonly model: Model,
    private readonly colours: Colours,
    private readonly actions: TableActions,
  ) {
    this.#heads = COLUMNS.map(({ key, title, kind }) => {
      const sort = () => this.#sort(key);
      return h("th", { scope: "col", class: kind, "data-key": key }, h("button", { type: "button", onclick: sort }, title));
    });
    const head = h(
      "thead",
      {},
      h("tr", {}, h("th", { scope: "col", class: "pin" }, h("span", { class: "unseen" }, "In colour")), ...this.#heads),
    );
    this.#body.append(this.#above, this.#below);
    this.#table = h("table", { role: "grid", "aria-label": "Adapters" }, head, this.#body);
    const onkeydown = (event: KeyboardEvent) => this.#key(event);
    this.#scroll = h("div", { class: "scroll", tabindex: 0, onscroll: () => this.draw(), onkeydown }, this.#table);
    setAttribute(this.#scroll, "aria-label", "Adapters: arrows move, Enter shows details, space pins to the chart");
    setAttribute(this.#scroll, "role", "group");
    this.element = this.#scroll;
    const filter = (event: Event) => {
      this.model.change({ text: (event.target as HTMLInputElement).value });
      this.#scroll.scrollTop = 0;
      this.actions.changed();
    };
    this.#states.addEventListener("change", () => {
      this.model.change({ state: this.#states.value });
      this.actions.changed();
    });
    const input = h("input", {
      type: "search",
      placeholder: "Filter by name",
      "aria-label": "Filter by name",
      oninput: filter,
    });
    this.tools = [this.#found, input, this.#states];
    new ResizeObserver(() => this.draw()).observe(this.#scroll);
  }

  draw(): void {
    const { ranking, sort, counts, adapters } = this.model;
    const first = Math.max(0, Math.floor(this.#scroll.scrollTop / ROW) - MORE);
    const inSight = Math.min(ranking.length - first, Math.ceil(this.#scroll.clientHeight / ROW) + 2 * MORE);
    const shown = ranking.slice(first, first + Math.max(0, inSight));
    while (this.#rows.length < shown.length) this.#add();
    for (const { row } of this.#rows.slice(shown.length)) {
      row.hidden = true;
      for (const name of ["id", "data-name", "data-marked"]) row.removeAttribute(name);
    }
    for (const [i, adapter] of shown.entries()) this.#fill(this.#rows[i]!, adapter, first + i);
    height(this.#above, first * ROW);
    height(this.#below, (ranking.length - first - shown.length) * ROW);
    setAttribute(this.#table, "aria-rowcount", ranking.length + 1);
    for (const head of this.#heads) {
      const isSorted = head.dataset["key"] === sort.key;
      setAttribute(head, "aria-sort", isSorted ? (sort.isDown ? "descending" : "ascending") : "none");
    }
    setText(this.#found, ranking.length === adapters.size ? "" : `${count(ranking.length)} of ${count(adapters.size)}`);
    this.#options(counts, adapters.size);
  }

  #options(counts: ReadonlyMap<string, number>, all: number): void {
    const wanted = [
      ["all", `all states (${count(all)})`],
      ...[...counts].sort().map(([state, n]) => [state, `${state} (${count(n)})`]),
    ];
    const chosen = this.model.state;
    if (!wanted.some(([value]) => value === chosen)) wanted.push([chosen, `${chosen} (0)`]);
    const options = [...this.#states.options];
    if (options.map(({ value }) => value).join() !== wanted.map(([value]) => value).join())
      this.#states.replaceChildren(
        ...wanted.map(([value, text]) => h("option", { value: value!, selected: value === chosen }, text!)),
      );
    for (const [i, option] of [...this.#states.options].entries()) setText(option, wanted[i]![1]!);
  }

  #add(): void {
    const pin = h("input", { type: "checkbox", tabindex: -1, class: "dot" });
    const cells = COLUMNS.map(({ kind }) => h("td", { role: "gridcell", class: kind }));
    const row = h("tr", { role: "row" }, h("td", { role: "gridcell", class: "pin" }, pin), ...cells);
    const nameOf = () => row.dataset["name"]!;
    pin.addEventListener("change", () => this.#pin(nameOf()));
    row.addEventListener("click", ({ target }) => {
      if (target === pin) return;
      this.#marked = nameOf();
      this.actions.select(nameOf());
    });
    const progress = cells[2]!;
    progress.append(h("span", { class: "bar", "aria-hidden": "true" }, h("i")), h("span"));
    cells[1]!.append(h("span", { class: "pill" }));
    this.#rows.push({ row, pin, cells });
    this.#below.before(row);
  }

  #fill({ row, pin, cells }: Row, adapter: Adapter, index: number): void {
    const { name, label, state, step, steps } = adapter;
    row.hidden = false;
    setAttribute(row, "data-name", name);
    setAttribute(row, "id", `row-${index}`);
    setAttribute(row, "aria-rowindex", index + 2);
    setAttribute(row, "aria-selected", String(name === this.model.selected));
    setAttribute(row, "data-marked", name === this.#marked);
    if (name === this.#marked) setAttribute(this.#scroll, "aria-activedescendant", row.id);
    const slot = this.colours.slotOf(name);
    setAttribute(pin, "class", `dot s${slot ?? "none"}`);
    pin.checked = this.model.pinned.has(name);
    setAttribute(pin, "aria-label", `${label} in colour`);
    for (const [i, { kind, of }] of COLUMNS.entries()) {
      const cell = cells[i]!;
      if (kind === "progress") {
        const bar = cell.firstElementChild!.firstElementChild as HTMLElement;
        bar.style.width = `${steps > 0 ? Math.min(100, (100 * step) / steps) : 0}%`;
        setText(cell.lastElementChild!, of(adapter));
      } else if (kind === "state") {
        setAttribute(cell.firstElementChild!, "data-state", state);
        setText(cell.firstElementChild!, state);
      } else setText(cell, of(adapter));
    }
    setAttribute(cells[0]!, "title", label);
  }

  #sort(key: SortKey): void {
    const { sort } = this.model;
    const isDown = sort.key === key ? !sort.isDown : DOWN.includes(key);
    this.model.change({ sort: { key, isDown } });
    this.actions.changed();
  }

  #pin(name: string): void {
    if (!this.model.pinned.delete(name)) this.model.pinned.add(name);
    this.actions.changed();
  }

  #key(event: KeyboardEvent): void {
    const { ranking } = this.model;
    if (ranking.length === 0 || event.target !== this.#scroll) return;
    const at = ranking.findIndex(({ name }) => name === this.#marked);
    const page = Math.max(1, Math.floor(this.#scroll.clientHeight / ROW) - 2);
    const to: Readonly<Record<string, number>> = {
      ...{
        ArrowDown: at + 1,
        ArrowUp: Math.max(0, at - 1),
        PageDown: at + page,
        PageUp: at - page,
        Home: 0,
        End: ranking.length - 1,
      },
    };
    const marked = this.#marked;
    if (event.key in to) {
      const next = Math.max(0, Math.min(ranking.length - 1, to[event.key]!));
      this.#marked = ranking[next]!.name;
      this.#show(next);
    } else if (event.key === "Enter" && marked !== null) this.actions.select(marked);
    else if (event.key === " " && marked !== null) this.#pin(marked);
    else return;
    event.preventDefault();
    this.draw();
  }

  #show(index: number): void {
    const head = this.#table.tHead!.offsetHeight;
    const [top, bottom] = [index * ROW, (index + 1) * ROW];
    if (top < this.#scroll.scrollTop) this.#scroll.scrollTop = top;
    const end = this.#scroll.scrollTop + this.#scroll.clientHeight - head;
    if (bottom > end) this.#scroll.scrollTop += bottom - end;
  }
}

function height(spacer: HTMLTableRowElement, pixels: number): void {
  spacer.hidden = pixels <= 0;
  spacer.firstElementChild!.setAttribute("height", `${Math.max(0, pixels)}`);
}
