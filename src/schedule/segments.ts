// An adapter's micro-batches in the order in which they are trained: a function of its own data and settings, so the same in
// with any others, in any pass and on any number of stages.

import { alignUp } from "../base/shape.ts";
import { stepsOf, type Work } from "./steps.ts";

/** A micro-batch of one adapter within a pass. */
export type SegmentRef = {
  readonly adapter: number;
  readonly step: number;
  readonly rows: readonly number[];
  /** Tokens of the same mini-batch that came before. */
  readonly firstRow: number;
  /** All rows of the mini-batch, whose targets the loss is averaged over. */
  readonly miniBatch: readonly number[];
  /** The mini-batch's last: the adapter steps after its backward pass. */
  readonly last: boolean;
};

/** All micro-batches of an adapter from step `from` on, of at most `budget` tokens where a row is not longer. */
export function* segmentsOf(adapter: number, work: Work, tokensPerMicrobatch: number, from = 0): Generator<SegmentRef> {
  let step = from;
  for (const { microBatches } of stepsOf(work, tokensPerMicrobatch, from)) {
    const miniBatch = microBatches.flat();
    let firstRow = 0;
    for (const [i, rows] of microBatches.entries()) {
      yield { adapter, step, rows, firstRow, miniBatch, last: i + 1 === microBatches.length };
      firstRow += tokensOf(work, rows);
    }
    step++;
  }
}

/** Rows that a share takes in a pass: its tokens, padded to whole tiles. */
export const paddedRows = (work: Work, { rows }: SegmentRef, rowTile: number): number => alignUp(tokensOf(work, rows), rowTile);

function tokensOf({ lengths }: Work, rows: readonly number[]): number {
  let total = 0;
  for (const row of rows) total += lengths[row]!;
  return total;
}
