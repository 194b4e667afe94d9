// What lists of actions cost, from given times: how long all takes, how long stages stand idle, how much they must keep.

import { maxOf, sum } from "../base/shape.ts";
import type { PackedBatch, StageAction, Times } from "./lists.ts";
import { type Played, play } from "./play.ts";

/** Something that a stage did, simulated or measured: what is drawn. */
export type Span = {
  readonly stage: number;
  readonly kind: "forward" | "backward" | "step";
  /** The pass's number; null for a step. */
  readonly pass: number | null;
  readonly adapters: readonly number[];
  readonly start: number;
  readonly end: number;
};

export type SimulateOptions = {
  readonly stages: number;
  readonly times: Times;
  /** Messages that a stage may have sent ahead before it has to wait; no bound unless given. */
  readonly sendBuffers?: number;
  /** Told each span; those of one stage come in order. */
  readonly onSpan?: (span: Span) => void;
};

export type Simulation = {
  readonly passes: number;
  /** Padded rows of all passes. */
  readonly rows: number;
  readonly makespan: number;
  /** For each stage, how long it computes. */
  readonly busy: readonly number[];
  /** The idle share of all stages' time, fill and drain among it. */
  readonly bubble: number;
  /** The same from the first backward of the first stage to the end of its last forward; null where these do not come so. */
  readonly steadyBubble: number | null;
  /** No schedule of these passes is shorter: the busiest stage's work, and the quickest way to it and from it. */
  readonly lowerBound: number;
  /** For each stage, the most passes and padded rows between forward and backward. */
  readonly peakPasses: readonly number[];
  readonly peakRows: readonly number[];
};

/**
 * Plays the lists. A stage computes one action at a time, transfers run concurrently, and a step waits for the last backward on
 * all stages. Throws a ScheduleFault where the lists cannot be carried out.
 */
export function simulate(actions: Iterable<StageAction>, options: SimulateOptions): Simulation {
  const { stages, times, sendBuffers = Number.POSITIVE_INFINITY, onSpan } = options;
  const zeros = () => new Array<number>(stages).fill(0);
  const [busy, stepping, passes, rows, peakPasses, peakRows] = [zeros(), zeros(), zeros(), zeros(), zeros(), zeros()];
  const ways = new Ways(stages, times);
  const steady = new Steady(stages);
  let [makespan, totalPasses, totalRows] = [0, 0, 0];

  for (const played of play(actions, { stages, times, sendBuffers })) {
    const { stage, action, start, end } = played;
    busy[stage]! += end - start;
    makespan = Math.max(makespan, end);
    steady.add(played);
    onSpan?.(spanOf(played));
    if (action.kind === "step") {
      stepping[stage]! += end - start;
      continue;
    }
    const sign = action.kind === "forward" ? 1 : -1;
    passes[stage]! += sign;
    rows[stage]! += sign * action.pass.rows;
    peakPasses[stage] = Math.max(peakPasses[stage]!, passes[stage]!);
    peakRows[stage] = Math.max(peakRows[stage]!, rows[stage]!);
    if (stage > 0 || sign < 0) continue;
    totalPasses++;
    totalRows += action.pass.rows;
    ways.add(action.pass);
  }
  return {
    passes: totalPasses,
    rows: totalRows,
    makespan,
    busy,
    bubble: makespan === 0 ? 0 : 1 - sum(busy) / (stages * makespan),
    steadyBubble: steady.bubble(),
    lowerBound: ways.lowerBound(busy, stepping),
    peakPasses,
    peakRows,
  };
}

/**
 * The share of idle time in 1F1B order, by formula: equal stages, `adapters` whose mini-batches are cut into `cuts` equal
 * passes.
 */
export function bubbleRatio(stages: number, adapters: number, cuts: number): number {
  // A mini-batch takes as long as stages + cuts - 1 passes from its first forward to its last backward; in that time there is
  // work for adapters x cuts. One adapter: (D - 1) / (N + D - 1), as in GPipe. No cutting: (D - L) / D, the paper's LoRAPP.
  return Math.max(0, 1 - (adapters * cuts) / (stages + cuts - 1));
}

const spanOf = ({ stage, action, start, end }: Played): Span => {
  const of = action.kind === "step" ? action.steps : action.pass.segments;
  const pass = action.kind === "step" ? null : action.pass.id;
  return { stage, kind: action.kind, pass, adapters: of.map(({ adapter }) => adapter), start, end };
};

/** The quickest way of any pass to each stage, and from it back to the first. */
class Ways {
  readonly #there: number[];
  readonly #back: number[];
  constructor(
    readonly stages: number,
    readonly times: Times,
  ) {
    this.#there = new Array<number>(stages).fill(Number.POSITIVE_INFINITY);
    this.#back = new Array<number>(stages).fill(Number.POSITIVE_INFINITY);
  }

  add(pass: PackedBatch): void {
    const { forward, backward, transfer } = this.times;
    let [there, back] = [0, 0];
    for (let stage = 0; stage < this.stages; stage++) {
      this.#there[stage] = Math.min(this.#there[stage]!, there);
      this.#back[stage] = Math.min(this.#back[stage]!, back);
      if (stage + 1 === this.stages) break;
      there += forward(stage, pass) + transfer(stage, pass, "forward");
      back += backward(stage, pass) + transfer(stage, pass, "backward");
    }
  }

  /** A stage may step while its last gradients are on their way back, so of both only the longer counts. */
  lowerBound(busy: readonly number[], stepping: readonly number[]): number {
    const bounds = busy.map((work, stage) => this.#there[stage]! + work + Math.max(0, this.#back[stage]! - stepping[stage]!));
    return bounds.some((bound) => bound === Number.POSITIVE_INFINITY) ? 0 : maxOf(bounds);
  }
}

/** Busy time between the first backward and the last forward of stage 0. Keeps only what may yet lie outside. */
class Steady {
  #from = Number.POSITIVE_INFINITY;
  #to = Number.NEGATIVE_INFINITY;
  #busy = 0;
  #open: { readonly start: number; readonly end: number }[] = [];
  constructor(readonly stages: number) {}

  add({ stage, action, start, end }: Played): void {
    this.#open.push({ start, end });
    if (stage > 0) return;
    if (action.kind === "backward") this.#from = Math.min(this.#from, start);
    if (action.kind !== "forward") return;
    this.#to = end;
    if (this.#from < Number.POSITIVE_INFINITY) this.#fold();
  }

  /** Counts what certainly lies inside. */
  #fold(): void {
    for (const span of this.#open) if (span.end <= this.#to) this.#busy += this.#inside(span);
    this.#open = this.#open.filter(({ end }) => end > this.#to);
  }

  #inside({ start, end }: { readonly start: number; readonly end: number }): number {
    return Math.max(0, Math.min(end, this.#to) - Math.max(start, this.#from));
  }

  bubble(): number | null {
    const length = this.#to - this.#from;
    if (!(length > 0)) return null;
    return 1 - (this.#busy + sum(this.#open.map((span) => this.#inside(span)))) / (this.stages * length);
  }
}
