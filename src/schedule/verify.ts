// Proves that lists of actions can be carried out and train what they should, or says what is wrong.
//
// Of each list for itself: an adapter's micro-batches come in order and complete, forward once and backward once; it steps
// after all of them and before its next mini-batch's first; no more passes are in flight than there is memory for. Of the lists
// together, by playing them: what a stage receives is what its neighbour sends next, no step waits for ever, and neither does a
// stage for a message or for a buffer. What play finds holds for any times.

import {
  describeAction,
  type PackedBatch,
  type PipelineAction,
  ROW_TIMES,
  type StageAction,
  sameBatch,
  sameRows,
} from "./lists.ts";
import { play, ScheduleFault } from "./play.ts";
import type { SegmentRef } from "./segments.ts";

export type VerifyOptions = {
  readonly stages: number;
  /** For each stage, the passes that it has memory for between forward and backward. */
  readonly inFlight: readonly number[];
  /** Messages sent to a neighbour that it has not begun to use, at most; a stage that has sent as many waits. */
  readonly sendBuffers: number;
  /** Steps of each adapter, where all are to be made; one that ended early makes fewer. */
  readonly steps?: readonly number[];
  /** Those of them that were made before these actions; none unless given. */
  readonly from?: readonly number[];
};

/** Why the actions must not be carried out, or null when they may. Keeps no more of them in memory than are in flight. */
export function verify(actions: Iterable<StageAction>, options: VerifyOptions): string | null {
  const { stages, sendBuffers, from = [] } = options;
  const checks = Array.from({ length: stages }, (_, stage) => new StageCheck(stage, options.inFlight[stage]!, from));
  function* checked(): Generator<StageAction> {
    for (const item of actions) {
      const check = checks[item.stage];
      if (!check) throw new ScheduleFault(`an action for stage ${item.stage} of ${stages}`);
      check.take(item.action);
      yield item;
    }
  }
  try {
    for (const _ of play(checked(), { stages, sendBuffers, times: ROW_TIMES }));
    const made = checks.map((check) => check.finish());
    for (const [stage, steps] of made.entries()) compareSteps(stage, steps, options.steps ?? made[0]!);
    return null;
  } catch (error) {
    if (error instanceof ScheduleFault) return error.message;
    throw error;
  }
}

function compareSteps(stage: number, made: readonly number[], wanted: readonly number[]): void {
  for (let adapter = 0; adapter < Math.max(made.length, wanted.length); adapter++) {
    const [has, should] = [made[adapter] ?? 0, wanted[adapter] ?? 0];
    if (has !== should) throw new ScheduleFault(`stage ${stage}: adapter ${adapter} makes ${has} steps instead of ${should}`);
  }
}

/** An adapter on one stage: steps made, its mini-batch, and how many rows of that have gone forward and backward. */
type Progress = { stepped: number; forward: number; backward: number; miniBatch: readonly number[] };

const atStep = (stepped: number): Progress => ({ stepped, forward: 0, backward: 0, miniBatch: [] });

/** The list of one stage, action by action. */
class StageCheck {
  readonly #adapters: Progress[];
  readonly #inFlight = new Map<number, PackedBatch>();
  #count = 0;

  constructor(
    readonly stage: number,
    readonly limit: number,
    from: readonly number[],
  ) {
    this.#adapters = from.map(atStep);
  }

  take(action: PipelineAction): void {
    if (action.kind === "forward") this.#forward(action.pass);
    else if (action.kind === "backward") this.#backward(action.pass);
    else for (const { adapter, step } of action.steps) this.#step(adapter, step, action);
    this.#count++;
  }

  /** Steps made by each adapter. */
  finish(): number[] {
    for (const pass of this.#inFlight.values()) this.#fail({ kind: "forward", pass }, "its backward never comes");
    for (const [adapter, { forward, stepped }] of this.#adapters.entries())
      if (forward > 0) throw new ScheduleFault(`stage ${this.stage}: adapter ${adapter} never makes its step ${stepped}`);
    return this.#adapters.map(({ stepped }) => stepped);
  }

  #forward(pass: PackedBatch): void {
    const action = { kind: "forward", pass } as const;
    if (this.#inFlight.has(pass.id)) this.#fail(action, "it is in flight already");
    if (this.#inFlight.size >= this.limit)
      this.#fail(action, `${this.limit} passes are in flight, all that there is memory for`);
    if (pass.segments.length === 0) this.#fail(action, "it is empty");
    const seen = new Set<number>();
    for (const segment of pass.segments) {
      const { adapter, step, firstRow, rows, miniBatch, last } = segment;
      if (seen.has(adapter)) this.#fail(action, `adapter ${adapter} has two micro-batches in it`);
      seen.add(adapter);
      const progress = this.#progress(adapter);
      if (step !== progress.stepped)
        this.#fail(action, `adapter ${adapter} is in its step ${step}, but ${progress.stepped} steps were made here`);
      if (rows.length === 0) this.#fail(action, `adapter ${adapter}'s micro-batch has no row`);
      if (progress.forward === 0) progress.miniBatch = miniBatch;
      else if (!sameRows(miniBatch, progress.miniBatch))
        this.#fail(action, `adapter ${adapter}'s micro-batch is of another mini-batch than the one before it`);
      const place = `rows ${progress.forward} to ${progress.forward + rows.length} of ${miniBatch.length}`;
      if ((firstRow === 0) !== (progress.forward === 0) || rows.some((row, i) => row !== miniBatch[progress.forward + i]))
        this.#fail(action, `adapter ${adapter}'s micro-batch is not its next, ${place} of its mini-batch`);
      progress.forward += rows.length;
      if (last !== (progress.forward === miniBatch.length))
        this.#fail(action, `adapter ${adapter}'s micro-batch, ${place}, is ${last ? "" : "not "}said to be the last`);
    }
    this.#inFlight.set(pass.id, pass);
  }

  #backward(pass: PackedBatch): void {
    const action = { kind: "backward", pass } as const;
    const forward = this.#inFlight.get(pass.id);
    if (!forward) this.#fail(action, "it is not in flight here");
    if (!sameBatch(forward!, pass)) this.#fail(action, "its forward was one of other micro-batches");
    this.#inFlight.delete(pass.id);
    for (const segment of pass.segments) {
      const progress = this.#progress(segment.adapter);
      if (!isAt(segment, progress.backward))
        this.#fail(
          action,
          `adapter ${segment.adapter}'s gradients would be summed in another order: an earlier micro-batch waits`,
        );
      progress.backward += segment.rows.length;
    }
  }

  #step(adapter: number, step: number, action: PipelineAction): void {
    const progress = this.#progress(adapter);
    if (step !== progress.stepped) this.#fail(action, `adapter ${adapter} has made ${progress.stepped} steps here`);
    const rows = progress.miniBatch.length;
    if (rows === 0 || progress.backward !== rows)
      this.#fail(action, `adapter ${adapter} has done ${progress.backward} rows of its mini-batch of ${rows}`);
    Object.assign(progress, atStep(step + 1));
  }

  #progress(adapter: number): Progress {
    for (let i = this.#adapters.length; i <= adapter; i++) this.#adapters.push(atStep(0));
    return this.#adapters[adapter]!;
  }

  #fail(action: PipelineAction, why: string): never {
    throw new ScheduleFault(`stage ${this.stage}, action ${this.#count}, ${describeAction(action)}: ${why}`);
  }
}

/** Whether a micro-batch begins `rows` rows into its mini-batch. */
const isAt = ({ rows, miniBatch }: SegmentRef, at: number): boolean => rows.every((row, i) => row === miniBatch[at + i]);
