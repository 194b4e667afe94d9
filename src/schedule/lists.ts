// The words of a pipeline's schedule: what each stage does, in order, as plain data. Made by pipeline.ts, proved by verify.ts,
// played by simulate.ts, carried out by the coordinator.

import { maxOf } from "../base/shape.ts";
import type { SegmentRef } from "./segments.ts";

/**
 * lorapp: adapters fill each other's bubbles; 1F1B order. 1f1b and gpipe, the baselines: one adapter at a time, its mini-batch
 * flushed before the next begins; gpipe runs all forwards of a mini-batch before its first backward.
 */
export type ScheduleKind = "lorapp" | "1f1b" | "gpipe";

/** Micro-batches of one or more adapters (one of each at most) that go through all stages together. */
export type PackedBatch = {
  /** Counts from 0 in the order in which the first stage begins them; also the tag of what goes between stages. */
  readonly id: number;
  readonly segments: readonly SegmentRef[];
  /** Padded rows of all shares: what the pass's work is proportional to. */
  readonly rows: number;
};

/** An optimizer step of one adapter; its first is 0. */
export type StepRef = { readonly adapter: number; readonly step: number };

/**
 * forward: receives the activation from the stage before (but on the first), computes, sends to the stage after (but on the
 * last). backward: the same in the other direction. step: needs the backward passes of these mini-batches on ALL stages, since
 * gradients are clipped by their norm over all of them.
 */
export type PipelineAction =
  | { readonly kind: "forward"; readonly pass: PackedBatch }
  | { readonly kind: "backward"; readonly pass: PackedBatch }
  | { readonly kind: "step"; readonly steps: readonly StepRef[] };

/** An action of one stage. A stage's list is what a sequence of these holds for it, in its order. */
export type StageAction = { readonly stage: number; readonly action: PipelineAction };

/** Which way something goes between stage `link` and stage `link + 1`: activations forward, gradients backward. */
export type Direction = "forward" | "backward";

/** What decides which micro-batches there are, and which of them fit into a pass. */
export type Limits = {
  /** Tokens of an adapter's own micro-batch; decides its sums, so it may depend on nothing but the recipe. */
  readonly tokensPerMicrobatch: number;
  /** Rows of a pass at most, shares rounded up to `rowTile`; a larger micro-batch runs alone. */
  readonly passRows: number;
  readonly rowTile: number;
};

/** How long work takes, in any one unit. */
export type Times = {
  readonly forward: (stage: number, pass: PackedBatch) => number;
  readonly backward: (stage: number, pass: PackedBatch) => number;
  readonly step: (stage: number, steps: readonly StepRef[]) => number;
  /** From stage `link` to `link + 1` or back; a link carries one pass after the other in each direction. */
  readonly transfer: (link: number, pass: PackedBatch, direction: Direction) => number;
};

/** A row costs 1 forward and 2 backward on every stage; nothing else costs anything. */
export const ROW_TIMES: Times = {
  forward: (_, { rows }) => rows,
  backward: (_, { rows }) => 2 * rows,
  step: () => 0,
  transfer: () => 0,
};

/** Mini-batches whose last micro-batch is in the pass: its backward pass completes their gradients. */
export const endsOf = ({ segments }: PackedBatch): StepRef[] =>
  segments.filter(({ last }) => last).map(({ adapter, step }) => ({ adapter, step }));

/** Whether both are the same work under the same tag; copies are. */
export const sameBatch = (a: PackedBatch, b: PackedBatch): boolean =>
  a === b ||
  (a.id === b.id &&
    a.rows === b.rows &&
    a.segments.length === b.segments.length &&
    a.segments.every((segment, i) => sameSegment(segment, b.segments[i]!)));

const sameSegment = (a: SegmentRef, b: SegmentRef): boolean =>
  a === b ||
  (a.adapter === b.adapter &&
    a.step === b.step &&
    a.firstRow === b.firstRow &&
    a.last === b.last &&
    sameRows(a.rows, b.rows) &&
    sameRows(a.miniBatch, b.miniBatch));

/** Whether both are the same rows in the same order. */
export const sameRows = (a: readonly number[], b: readonly number[]): boolean =>
  a === b || (a.length === b.length && a.every((row, i) => row === b[i]));

/** The list of each stage. */
export function listsOf(actions: Iterable<StageAction>, stages: number): PipelineAction[][] {
  const lists: PipelineAction[][] = Array.from({ length: stages }, () => []);
  for (const { stage, action } of actions) lists[stage]!.push(action);
  return lists;
}

/** The actions of lists as one sequence, a stage after the other in turn. */
export function* inTurn(lists: readonly (readonly PipelineAction[])[]): Generator<StageAction> {
  const longest = maxOf(lists.map(({ length }) => length));
  for (let i = 0; i < longest; i++)
    for (const [stage, list] of lists.entries()) {
      const action = list[i];
      if (action) yield { stage, action };
    }
}

/** An action in words, for messages. */
export function describeAction(action: PipelineAction): string {
  if (action.kind !== "step") return `${action.kind} of pass ${action.pass.id}`;
  return `step of ${action.steps.map(({ adapter, step }) => `adapter ${adapter} (its step ${step})`).join(", ")}`;
}
