// A run before it is run: its schedule, played with times that the plan can know. What is drawn and counted for a person.

import { maxOf, sum } from "../../base/shape.ts";
import { SEND_BUFFERS } from "../../plan/memory.ts";
import { costsOf, headWork } from "../../plan/partition.ts";
import { bytesOnStages, type Plan } from "../../plan/plan.ts";
import { backwardCost, stageWork, timesOf } from "../../plan/times.ts";
import { admissibleBytes } from "../../plan/waiting-memory.ts";
import { admissions, type Candidate, type Room, together, without } from "../../schedule/admission.ts";
import type { StageAction, StepRef } from "../../schedule/lists.ts";
import type { Joining } from "../../schedule/pipeline.ts";
import type { SegmentRef } from "../../schedule/segments.ts";
import { type Simulation, type Span, simulate } from "../../schedule/simulate.ts";
import { actionsOf } from "../training/actions.ts";

export type { Span } from "../../schedule/simulate.ts";

/** More passes than this are not played: seconds are enough to wait, and what comes after is like what came before. */
const MOST_PASSES = 20_000;
/** Spans of each stage that are kept for drawing: many times what fits a screen. */
const KEPT_SPANS = 600;
/** The time drawn, in times of the first pass there and back, at least: to show more than how the pipeline fills. */
const ROUNDS_DRAWN = 1.75;

export type SimulatedRun = {
  readonly simulation: Simulation;
  /** All passes were played; else as many as MOST_PASSES, and what was begun was finished. */
  readonly whole: boolean;
  /** Tokens that the passes train. */
  readonly tokens: number;
  /** Tokens of the largest micro-batch of one adapter. */
  readonly microBatch: number;
  /** The idle share that is left when no stage ever waits for another: the busiest has more work than the mean. */
  readonly uneven: number;
  /** The makespan over that of the shortest schedule that could be, as the paper has it: 1 is the shortest. */
  readonly overBound: number;
  /** The output head's work, in layers; a layer's backward pass takes `backwardCost` times as long as its forward pass. */
  readonly headLayers: number;
  readonly backwardCost: number;
  /** What each stage does, in order, from the beginning to `until`. */
  readonly spans: readonly (readonly Span[])[];
  readonly until: number;
  /** Mean length of a forward pass on a stage, and mean number of adapters in it. */
  readonly unit: number;
  readonly adaptersInPass: number;
  /** When the first stage begins its first backward. */
  readonly firstBack: number;
};

/** Plays the run of a plan, as if no adapter ended before its last step; `mostPasses` of it where it has more. */
export function simulateRun(plan: Plan, mostPasses = MOST_PASSES): SimulatedRun {
  const stages = plan.stages.length;
  const spans: Span[][] = plan.stages.map(() => []);
  let until = Number.POSITIVE_INFINITY;
  const keep = (span: Span): void => {
    if (spans[span.stage]!.length < KEPT_SPANS) spans[span.stage]!.push(span);
    else until = Math.min(until, span.start);
  };
  const counts = { passes: 0, tokens: 0, microBatch: 0, cutOff: false };
  const options = { stages, times: timesOf(plan), sendBuffers: SEND_BUFFERS, onSpan: keep };
  const simulation = simulate(runOf(plan, mostPasses, counts), options);
  const forwards = spans.flat().filter(({ kind }) => kind === "forward");
  const mean = (of: (span: Span) => number) => sum(forwards.map(of)) / forwards.length;
  const work = plan.stages.map((_, stage) => {
    const { forward, backward } = stageWork(plan, stage);
    return forward + backward;
  });
  return {
    simulation,
    whole: !counts.cutOff,
    tokens: counts.tokens,
    microBatch: counts.microBatch,
    uneven: 1 - sum(work) / (stages * maxOf(work)),
    overBound: simulation.lowerBound > 0 ? simulation.makespan / simulation.lowerBound : 1,
    headLayers: headWork(plan.spec, plan.targets, costsOf(plan.device, plan.stages[0]!.sizes.format)),
    backwardCost: backwardCost(plan.stages[0]!.sizes),
    spans,
    until: Math.min(until, simulation.makespan),
    unit: mean(({ start, end }) => end - start),
    adaptersInPass: mean(({ adapters }) => adapters.length),
    firstBack: spans[0]!.find(({ kind }) => kind === "backward")?.start ?? simulation.makespan,
  };
}

/** How much of the run is drawn where there is room for `units` forward passes: it begins with the first. */
export const drawnUntil = ({ until, unit, firstBack }: SimulatedRun, units: number): number =>
  Math.min(until, Math.max(units * unit, ROUNDS_DRAWN * firstBack));

type Counts = { passes: number; tokens: number; microBatch: number; cutOff: boolean };

/**
 * The actions of a whole run: adapters that wait get the slot of one that has made its last step, as in
 * session/scheduling/scheduler.ts.
 */
function* runOf(plan: Plan, mostPasses: number, counts: Counts): Generator<StageAction> {
  const { adapters, slots, stages } = plan;
  const join = (adapter: number): Joining => {
    const { work, recipe } = adapters[adapter]!;
    return { adapter, work, from: 0, priority: recipe.priority };
  };
  const candidates = adapters.map((adapter, index): Candidate => {
    return { adapter: index, priority: adapter.recipe.priority, arrived: index, bytes: bytesOnStages(plan, adapter) };
  });
  const nothing: Room = { slots: 0, bytes: stages.map(() => 0) };
  let waiting = candidates;
  const room = stages.map(({ sizes }, stage) => admissibleBytes(sizes, maxOf(candidates.map(({ bytes }) => bytes[stage]!))));
  let free: Room = { slots, bytes: room };
  /** Adapters that have room when this much more is free. */
  const admitted = (freed: Room): Joining[] => {
    free = together(free, freed);
    const { admit } = admissions(waiting, [], free, nothing);
    waiting = waiting.filter(({ adapter }) => !admit.includes(adapter));
    for (const adapter of admit) free = without(free, candidates[adapter]!);
    return admit.map(join);
  };
  const joining = admitted(nothing);
  const isLast = ({ adapter, step }: StepRef) => step + 1 === adapters[adapter]!.steps;
  // An adapter that would begin another mini-batch after the last pass that is played has left by then.
  const left = (): boolean => {
    counts.cutOff ||= counts.passes >= mostPasses;
    return counts.cutOff;
  };
  while (joining.length > 0 && !counts.cutOff)
    for (const item of actionsOf(plan, joining, left, counts.passes)) {
      yield item;
      const { stage, action } = item;
      if (action.kind === "forward" && stage === 0) {
        counts.passes++;
        for (const segment of action.pass.segments) {
          const tokens = tokensOf(plan, segment);
          counts.tokens += tokens;
          counts.microBatch = Math.max(counts.microBatch, tokens);
        }
      }
      if (action.kind !== "step" || stage + 1 < stages.length) continue;
      for (const { adapter } of action.steps.filter(isLast))
        joining.push(...admitted({ slots: 1, bytes: candidates[adapter]!.bytes }));
    }
}

const tokensOf = ({ adapters }: Plan, { adapter, rows }: SegmentRef): number =>
  sum(rows.map((row) => adapters[adapter]!.work.lengths[row]!));
