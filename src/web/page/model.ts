// What the page knows, kept up to date by events, and what is chosen to be looked at.

import { Curve, MEASURES, type Measure, type Point } from "../curve.ts";
import type { Ability, AdapterState, All, Change, HeldOut, Notice, RunState } from "../wire.ts";

/** Points of a curve: as the server keeps them. */
const MOST_POINTS = 256;
const MOST_NOTICES = 200;
/** Adapters that have a colour of their own in charts. */
export const MOST_SHOWN = 10;

export type Adapter = AdapterState & { readonly curve: Curve; readonly heldOuts: readonly HeldOut[] };
export type ChartMeasure = Measure | "heldOut";
export type SortKey =
  | "label"
  | "state"
  | "progress"
  | "loss"
  | "bestHeldOut"
  | "gradNorm"
  | "tokensPerSecond"
  | "secondsLeft"
  | "learningRate";
export type Sort = { readonly key: SortKey; readonly isDown: boolean };

export class Model {
  title = "";
  version = "";
  abilities: readonly Ability[] = [];
  run: RunState | null = null;
  notices: readonly Notice[] = [];
  readonly adapters = new Map<string, Adapter>();
  /** Tokens a second of all, for its small curve. */
  readonly rates: number[] = [];
  sort: Sort = { key: "bestHeldOut", isDown: false };
  text = "";
  state = "all";
  /** What the details show. */
  selected: string | null = null;
  /** Chosen to be in charts; empty: the first of the ranking. */
  readonly pinned = new Set<string>();
  #ranking: readonly Adapter[] | null = null;
  /** Those in colour where none is pinned. */
  #first: readonly string[] = [];

  can(ability: Ability): boolean {
    return this.abilities.includes(ability);
  }

  takeAll({ title, version, abilities, run, adapters, notices }: All): void {
    Object.assign(this, { title, version, abilities, run, notices });
    this.adapters.clear();
    for (const { stride, points: _, heldOuts: __, ...state } of adapters)
      this.adapters.set(state.name, { ...state, curve: new Curve(MOST_POINTS, stride), heldOuts: [] });
    this.#take(adapters);
    if (!this.#hasHeldOut() && this.sort.key === "bestHeldOut") this.sort = { key: "loss", isDown: false };
    this.#ranking = null;
    this.selected ??= this.ranking[0]?.name ?? null;
  }

  take({ run, adapters, notices }: Change): void {
    this.run = run;
    this.notices = [...this.notices, ...notices].slice(-MOST_NOTICES);
    this.#take(adapters);
    this.rates.push(this.tokensPerSecond);
    if (this.rates.length > 120) this.rates.shift();
  }

  #take(adapters: Change["adapters"]): void {
    for (const { points, heldOuts, ...state } of adapters) {
      const known = this.adapters.get(state.name);
      const curve = known?.curve ?? new Curve(MOST_POINTS);
      for (const point of points) curve.add(point);
      this.adapters.set(state.name, { ...state, curve, heldOuts: [...(known?.heldOuts ?? []), ...heldOuts] });
    }
    this.#ranking = null;
  }

  #hasHeldOut(): boolean {
    return [...this.adapters.values()].some(({ heldOut }) => heldOut !== null);
  }

  get tokensPerSecond(): number {
    let total = 0;
    for (const { tokensPerSecond } of this.adapters.values()) total += tokensPerSecond ?? 0;
    return total;
  }

  /** How many are in each state. */
  get counts(): ReadonlyMap<string, number> {
    const counts = new Map<string, number>();
    for (const { state } of this.adapters.values()) counts.set(state, (counts.get(state) ?? 0) + 1);
    return counts;
  }

  change(what: Partial<Pick<Model, "sort" | "text" | "state" | "selected">>): void {
    Object.assign(this, what);
    this.#ranking = null;
    if (!("selected" in what)) this.#first = [];
  }

  /** Adapters that the filters leave, in order; those without a value come last. */
  get ranking(): readonly Adapter[] {
    if (this.#ranking) return this.#ranking;
    const words = this.text.toLowerCase().split(/\s+/).filter(Boolean);
    const isWanted = ({ label, state }: Adapter) =>
      (this.state === "all" || state === this.state) && words.every((word) => label.toLowerCase().includes(word));
    const { key, isDown } = this.sort;
    const sign = isDown ? -1 : 1;
    this.#ranking = [...this.adapters.values()].filter(isWanted).sort((a, b) => {
      const [x, y] = [sortedBy(a, key), sortedBy(b, key)];
      if (x === null || y === null) return Number(x === null) - Number(y === null) || compare(a.label, b.label);
      return sign * compare(x, y) || compare(a.label, b.label);
    });
    return this.#ranking;
  }

  /**
   * Adapters with a colour of their own in charts: those that are pinned, else the first of the ranking. One that falls back a
   * little keeps its place, so that colours do not change at every step.
   */
  get shown(): readonly Adapter[] {
    const pinned = [...this.pinned].flatMap((name) => this.adapters.get(name) ?? []);
    if (pinned.length === 0) {
      const near = new Set(this.ranking.slice(0, 3 * MOST_SHOWN).map(({ name }) => name));
      const stay = this.#first.filter((name) => near.has(name));
      this.#first = [...new Set([...stay, ...near])].slice(0, MOST_SHOWN);
    }
    const first = pinned.length > 0 ? pinned : this.#first.map((name) => this.adapters.get(name)!);
    const selected = this.selected === null ? undefined : this.adapters.get(this.selected);
    const all = [...new Set([...(selected ? [selected] : []), ...first])].slice(0, MOST_SHOWN);
    return all.sort((a, b) => compare(a.label, b.label));
  }
}

const compare = <T extends string | number>(a: T, b: T): number =>
  typeof a === "string" ? a.localeCompare(`${b}`, "en", { numeric: true }) : a < b ? -1 : Number(a > b);

function sortedBy(adapter: Adapter, key: SortKey): string | number | null {
  return key === "progress" ? (adapter.steps > 0 ? adapter.step / adapter.steps : null) : adapter[key];
}

/** The points of a measure, by steps. */
export function pointsOf({ curve, heldOuts }: Adapter, measure: ChartMeasure): readonly (readonly [number, number])[] {
  if (measure === "heldOut") return heldOuts;
  const at = MEASURES.indexOf(measure) + 1;
  return curve.points.flatMap((point: Point) => (point[at] === null ? [] : [[point[0], point[at]!] as const]));
}
