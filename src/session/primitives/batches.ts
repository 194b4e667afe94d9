// Rows of the primitives through the stages: cut as a run cuts them, and packed with those of other adapters' calls.

import { sleep } from "../../base/clock.ts";
import { alignUp, range, sum } from "../../base/shape.ts";
import type { SequenceLoss } from "../../bus/messages.ts";
import { scoreGroup, scorePolicy, scoreSegment } from "../../objectives/loss-weights.ts";
import type { Plan } from "../../plan/plan.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";
import { pack, packedSequences, type Row, type Segment, segmentRows, sequencesOf, type Tokens } from "../../schedule/pack.ts";
import type { PassTurns } from "../decoding/pass-turns.ts";
import type { Shares } from "../decoding/shares.ts";
import type { Ended } from "./training-passes.ts";

/**
 * Log-probabilities f32[ids.length] of a row's tokens, each given those before it; NaN where a token is no target, as the first
 * never is. `top`: of each target the likeliest tokens there, where they are asked for.
 */
export type RowLogProbs = { readonly logProbs: Float32Array; readonly other?: Float32Array; readonly top?: readonly Top[] };
/** Tokens in falling order of their log-probabilities. */
export type Top = { readonly ids: Int32Array; readonly logProbs: Float32Array };
/**
 * `loss` is the weighted sum over all targets, or the objective's loss of all rows. Of the `targets` of all sequences,
 * `correct` are the likeliest token.
 */
export type Losses = {
  readonly loss: number;
  readonly rows: readonly RowLogProbs[];
  readonly targets: number;
  readonly correct: number;
};

/** An adapter's rows, cut into micro-batches; `segmentOf` makes a segment of one when its turn comes. */
export type RowsCall = Ended & {
  /** By whose share its rows have their turn. */
  readonly owner: string;
  readonly rows: readonly Row[];
  readonly microBatches: readonly (readonly number[])[];
  readonly segmentOf: (rows: readonly number[]) => Segment;
  /** The number of likeliest tokens to find at each target; 0 for none. */
  readonly top: number;
};

/** A call under way. */
type Open = {
  readonly call: RowsCall;
  /** Micro-batches that are sent, and those whose losses are known. */
  sent: number;
  known: number;
  /** The loss of each micro-batch. Replies come in any order; losses are added in that of the call. */
  readonly losses: number[];
  readonly found: { targets: number; correct: number; rows: RowLogProbs[] };
  readonly done: PromiseWithResolvers<Losses>;
};
/** One micro-batch of a call. */
type Part = { readonly open: Open; readonly index: number; readonly of: readonly number[]; readonly segment: Segment };

/** Sends packed batches through the stages. */
export type PassRunner = {
  /** `ends` are calls whose last micro-batch is in the batch. */
  readonly run: (batch: MicroBatch, top: number, ends: readonly Ended[]) => Promise<readonly SequenceLoss[]>;
  /** Called where no batch follows those under way, or it waits until they are done. */
  readonly idle?: () => void;
};

/**
 * Packs the micro-batches of calls that are open at one time, one of each call in turn, as many in a pass as the plan allows. A
 * call may be added at any time. What an adapter gets does not depend on the others.
 */
export class Packer {
  readonly #open: Open[] = [];
  readonly #rowTile: number;
  readonly #mostRows: number;
  readonly #slots: number;
  /**
   * Passes that may be unanswered, one for each stage: a GPU has its next one at hand; a CPU would only keep this process from
   * its other work.
   */
  readonly #ahead: number;
  #underway = 0;
  #isPumping = false;

  /** Batches are sent in their turns; owners have their shares of the rows. */
  constructor(
    { slots, passRows, stages, device: { rowTile, kind } }: Pick<Plan, "slots" | "passRows" | "stages" | "device">,
    private readonly turns: PassTurns,
    private readonly shares: Shares,
    private readonly on: PassRunner,
  ) {
    this.#rowTile = rowTile;
    this.#slots = slots;
    this.#mostRows = Math.min(alignUp(passRows, rowTile), stages[0]!.sizes.rows);
    this.#ahead = stages.length + (kind === "cpu" ? 0 : 1);
  }

  /** Runs a call's micro-batches in their order. */
  add(call: RowsCall): Promise<Losses> {
    const found = { targets: 0, correct: 0, rows: new Array<RowLogProbs>(call.rows.length) };
    const open: Open = { call, sent: 0, known: 0, losses: [], found, done: Promise.withResolvers<Losses>() };
    this.#open.push(open);
    void this.#pump();
    return open.done.promise;
  }

  async #pump(): Promise<void> {
    if (this.#isPumping) return;
    this.#isPumping = true;
    await sleep(0); // calls that are made together share the first pass; and between passes the process does its other work
    while (this.#underway < this.#ahead && this.#open.length > 0) {
      const turn = await this.turns.take("training", this.on.idle);
      const parts = this.#take(); // with the calls that came meanwhile; none where a pass failed
      this.#underway++;
      void this.#pass(parts).finally(() => {
        turn[Symbol.dispose]();
        this.#underway--;
        void this.#pump();
      });
    }
    this.#isPumping = false;
    if (this.#open.length === 0) this.on.idle?.();
  }

  /**
   * The next micro-batch of each call, while there is room: by the shares of their owners, and of one owner those first that
   * were left out before.
   */
  #take(): Part[] {
    const parts: Part[] = [];
    const slots = new Set<number>();
    let taken = 0;
    for (const open of this.shares.inTurn([...this.#open], ({ call }) => call.owner)) {
      const { slot, microBatches, segmentOf } = open.call;
      const of = microBatches[open.sent]!;
      const rows = segmentRows(
        of.map((row) => open.call.rows[row]!),
        this.#rowTile,
      );
      if (slots.has(slot) || (parts.length > 0 && taken + rows > this.#mostRows)) continue;
      slots.add(slot);
      taken += rows;
      this.shares.charge(open.call.owner, rows);
      parts.push({ open, index: open.sent, of, segment: segmentOf(of) });
      open.sent++;
      this.#open.splice(this.#open.indexOf(open), 1);
      if (open.sent < microBatches.length) this.#open.push(open);
    }
    return parts;
  }

  async #pass(parts: readonly Part[]): Promise<void> {
    if (parts.length === 0) return;
    try {
      const batch = pack(
        parts.map(({ segment }) => segment),
        this.#slots,
        this.#rowTile,
      );
      const ends = parts.flatMap(({ open: { call }, index }) => (index + 1 === call.microBatches.length ? [call] : []));
      const losses = await this.on.run(batch, Math.max(...parts.map(({ open }) => open.call.top)), ends);
      let first = 0;
      for (const { open, index, of, segment } of parts) {
        const { found, call, done } = open;
        const count = packedSequences(segment.samples);
        let scored = first + sum(segment.samples.map((row) => sequencesOf(row).length));
        const end = first + count;
        open.losses[index] = lossOf(batch, losses, first, count);
        found.correct += sum(losses.slice(first, first + count).map(({ correct }) => correct));
        found.targets += sum(batch.sequences.slice(first, first + count).map(({ targets }) => targets));
        for (const row of of) {
          const { top } = losses[first]!;
          const [own, other] = sequencesOf(call.rows[row]!).map((sequence) =>
            atTokens(sequence, losses[first++]!.logProbs!, sequence.isScored ? losses[scored++]!.logProbs! : null),
          );
          const likeliest = call.top > 0 ? { top: topsOf(top!, call.top) } : {};
          found.rows[row] = { logProbs: own!, ...(other ? { other } : {}), ...likeliest };
        }
        first = end;
        if (++open.known === call.microBatches.length) done.resolve({ ...found, loss: sum(open.losses) });
      }
    } catch (error) {
      for (const { open } of parts) {
        open.done.reject(error);
        const at = this.#open.indexOf(open);
        if (at >= 0) this.#open.splice(at, 1);
      }
    }
  }
}

/** Of sequences from `first` on: the weighted sum of their targets' losses, or what the objective makes of them. */
function lossOf(batch: MicroBatch, losses: readonly SequenceLoss[], first: number, count: number): number {
  const preference = batch.preferences.find(({ firstSequence }) => firstSequence === first);
  if (preference) return sum(scoreSegment(batch, preference, losses).found.map((row) => row.loss));
  const policy = batch.policies?.find(({ firstSequence }) => firstSequence === first);
  if (policy) return sum(scorePolicy(policy, losses).map((target) => target.loss));
  const group = batch.groups?.find(({ firstSequence }) => firstSequence === first);
  if (group) return sum(scoreGroup(group, losses).map(({ targets }) => sum(targets.map((target) => target.loss))));
  let loss = 0;
  for (let i = first; i < first + count; i++)
    for (const [at, value] of losses[i]!.logProbs!.entries())
      loss -= batch.weights[batch.sequences[i]!.firstTarget + at]! * value;
  return loss;
}

/** Log-probabilities of targets, and of what is only scored, at their tokens; NaN elsewhere. */
function atTokens({ ids, mask }: Tokens, ofTargets: Float32Array, ofScored: Float32Array | null): Float32Array {
  let [at, scored] = [0, 0];
  return Float32Array.from(ids, (_, i) => {
    if (i > 0 && mask[i] === 1) return ofTargets[at++]!;
    return i > 0 && ofScored ? ofScored[scored++]! : Number.NaN;
  });
}

/** The first `count` of each target's likeliest tokens. */
function topsOf({ width, ids, logProbs }: NonNullable<SequenceLoss["top"]>, count: number): Top[] {
  return range(ids.length / width).map((target) => {
    const [from, to] = [target * width, target * width + Math.min(count, width)];
    return { ids: ids.slice(from, to), logProbs: logProbs.slice(from, to) };
  });
}
