// A trace of a run: what every stage did when, on one time axis, and the kernels of one round of steps.
//
// Stages time by their own clocks. What such a clock says is mapped to ours by the quickest of a few questions,
// whose answer was given half-way between asking and hearing: right to a fraction of a millisecond on one
// machine, of a round trip between two.

import { now } from "../../base/clock.ts";
import { maxOf, range, sum } from "../../base/shape.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import type { KernelSpan, StageSpan } from "../../bus/messages.ts";

/** Questions to a stage's clock. */
const QUESTIONS = 16;

/** What a stage did, in milliseconds of our clock from the trace's beginning. */
export type StageTrace = { readonly spans: readonly StageSpan[]; readonly kernels: readonly KernelSpan[] };

export class Tracer {
  /** Of each stage, first stage first: what has been recorded. */
  readonly traces: readonly { readonly spans: StageSpan[]; readonly kernels: KernelSpan[] }[];

  #what = { passes: false, kernels: false };

  private constructor(
    private readonly bus: Bus,
    /** The trace's beginning, by our clock in ms. */
    readonly began: number,
    /** For each stage, what its clock is ahead of the trace's. */
    private readonly ahead: readonly number[],
  ) {
    this.traces = ahead.map(() => ({ spans: [], kernels: [] }));
  }

  /** Asks the stages' clocks; nothing is recorded yet. */
  static async open(bus: Bus): Promise<Tracer> {
    const began = now();
    const ahead: number[] = [];
    for (const stage of range(bus.stages)) ahead.push((await clockAhead(bus, stage)) + began);
    return new Tracer(bus, began, ahead);
  }

  /**
   * From here to the next call what passes do is recorded, and kernels, or not. Resolves when what was recorded
   * before is here.
   */
  async record(what: { readonly passes: boolean; readonly kernels: boolean }): Promise<void> {
    this.#what = what;
    const replies = await requestAll(this.bus, { type: "trace", ...what });
    for (const [stage, { spans, kernels }] of replies.entries()) {
      const ahead = this.ahead[stage]!;
      const placed = <T extends { start: number; end: number }>(span: T): T => ({
        ...span,
        start: span.start - ahead,
        end: span.end - ahead,
      });
      for (const span of spans) this.traces[stage]!.spans.push(placed(span));
      for (const launch of kernels) this.traces[stage]!.kernels.push(placed(launch));
    }
  }

  /** Brings here what has been recorded; the same is recorded further. */
  collect(): Promise<void> {
    return this.record(this.#what);
  }
}

/** How far a stage's clock is ahead of our own, in milliseconds. */
async function clockAhead(bus: Bus, stage: number): Promise<number> {
  let [ahead, quickest] = [0, Number.POSITIVE_INFINITY];
  for (let i = 0; i < QUESTIONS; i++) {
    const asked = now();
    const { now: theirs } = await bus.request(stage, { type: "clock" });
    const heard = now();
    if (heard - asked >= quickest) continue;
    quickest = heard - asked;
    ahead = theirs - (asked + heard) / 2;
  }
  return ahead;
}

const trainingOf = ({ spans }: StageTrace) => spans.filter(({ kind }) => kind === "forward" || kind === "backward");
const firstStart = (spans: readonly StageSpan[]) =>
  spans.reduce((least, { start }) => Math.min(least, start), Number.POSITIVE_INFINITY);
const lastEnd = (spans: readonly StageSpan[]) => maxOf(spans.map(({ end }) => end));

/**
 * The idle share of the stages' time from the first training pass to the last, fill and drain among it: what is neither
 * computed nor evaluated. Null where nothing was trained.
 */
export function measuredBubble(traces: readonly StageTrace[]): number | null {
  const trained = traces.flatMap(trainingOf);
  return trained.length === 0 ? null : idleShare(traces, firstStart(trained), lastEnd(trained));
}

/** The same of a piece of a run, while all stages train: from where the last of them begins to where the first ends. */
export function steadyBubble(traces: readonly StageTrace[]): number | null {
  const trained = traces.map(trainingOf);
  if (trained.some((spans) => spans.length === 0)) return null;
  const [from, to] = [maxOf(trained.map(firstStart)), Math.min(...trained.map(lastEnd))];
  return to > from ? idleShare(traces, from, to) : null;
}

function idleShare(traces: readonly StageTrace[], from: number, to: number): number {
  const working = traces.flatMap(({ spans }) => spans.filter(({ kind }) => kind !== "send" && kind !== "receive"));
  const busy = sum(working.map(({ start, end }) => Math.max(0, Math.min(end, to) - Math.max(start, from))));
  return 1 - busy / (traces.length * (to - from));
}
