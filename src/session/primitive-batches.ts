// Rows of the primitives through the stages: cut as a run cuts them, and packed with those of other adapters' calls.

import { alignUp, sum } from "../base/shape.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import { scoreSegment } from "../objectives/loss-weights.ts";
import type { Plan } from "../plan/plan.ts";
import type { MicroBatch } from "../schedule/micro-batch.ts";
import { pack, type Row, type Segment, segmentRows, sequencesOf, type Tokens } from "../schedule/pack.ts";

/**
 * Log-probabilities f32[ids.length] of a row's tokens, each given those before it; NaN where a token is no target, as the first
 * never is.
 */
export type RowLogProbs = { readonly logProbs: Float32Array; readonly other?: Float32Array };
/** `loss` is the weighted sum over all targets, or the objective's loss of all rows. */
export type Losses = { readonly loss: number; readonly rows: readonly RowLogProbs[] };

/** An adapter's rows, cut into micro-batches; `segmentOf` makes a segment of one when its turn comes. */
export type RowsCall = {
  readonly rows: readonly Row[];
  readonly microBatches: readonly (readonly number[])[];
  readonly segmentOf: (rows: readonly number[]) => Segment;
};

/** One micro-batch of a call. */
type Part = { readonly call: RowsCall; readonly of: readonly number[]; readonly segment: Segment };

/**
 * Runs calls of different adapters together: their micro-batches in turn, as many in a packed batch as the plan allows. What an
 * adapter gets does not depend on the others. `run` sends a packed batch through the stages.
 */
export async function runCalls(
  calls: readonly RowsCall[],
  { slots, passRows, stages, device: { rowTile } }: Pick<Plan, "slots" | "passRows" | "stages" | "device">,
  run: (batch: MicroBatch) => Promise<readonly SequenceLoss[]>,
): Promise<Losses[]> {
  const mostRows = Math.min(alignUp(passRows, rowTile), stages[0]!.sizes.rows);
  const results = new Map(calls.map((call) => [call, { loss: 0, rows: new Array<RowLogProbs>(call.rows.length) }]));
  const runParts = async (parts: readonly Part[]): Promise<void> => {
    const batch = pack(
      parts.map(({ segment }) => segment),
      slots,
      rowTile,
    );
    const losses = await run(batch);
    let first = 0;
    for (const { call, of, segment } of parts) {
      const result = results.get(call)!;
      result.loss += lossOf(batch, losses, first, sum(segment.samples.map((row) => sequencesOf(row).length)));
      for (const row of of) {
        const [own, other] = sequencesOf(call.rows[row]!).map((sequence) => atTokens(sequence, losses[first++]!.logProbs!));
        result.rows[row] = { logProbs: own!, ...(other ? { other } : {}) };
      }
    }
  };
  for (let turn = 0; calls.some(({ microBatches }) => turn < microBatches.length); turn++) {
    let parts: Part[] = [];
    let taken = 0;
    for (const call of calls) {
      const of = call.microBatches[turn];
      if (!of) continue;
      const segment = call.segmentOf(of);
      const rows = segmentRows(segment.samples, rowTile);
      if (parts.length > 0 && taken + rows > mostRows) {
        await runParts(parts);
        [parts, taken] = [[], 0];
      }
      parts.push({ call, of, segment });
      taken += rows;
    }
    await runParts(parts);
  }
  return calls.map((call) => results.get(call)!);
}

/** Of sequences from `first` on: the weighted sum of their targets' losses, or what the objective makes of them. */
function lossOf(batch: MicroBatch, losses: readonly SequenceLoss[], first: number, count: number): number {
  const preference = batch.preferences.find(({ firstSequence }) => firstSequence === first);
  if (preference) return sum(scoreSegment(batch, preference, losses).found.map((row) => row.loss));
  let loss = 0;
  for (let i = first; i < first + count; i++)
    for (const [at, value] of losses[i]!.logProbs!.entries())
      loss -= batch.weights[batch.sequences[i]!.firstTarget + at]! * value;
  return loss;
}

/** Log-probabilities of targets at their tokens; NaN elsewhere. */
function atTokens({ ids, mask }: Tokens, ofTargets: Float32Array): Float32Array {
  let at = 0;
  return Float32Array.from(ids, (_, i) => (i > 0 && mask[i] === 1 ? ofTargets[at++]! : Number.NaN));
}
