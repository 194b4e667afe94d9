// What a plan has to know of each row: three numbers.

import { type Walked, walk } from "./walk.ts";

/** Of each row: tokens that it feeds to the model, those of its longest sequence, and how many have a target. */
export type RowCounts = { readonly lengths: Int32Array; readonly longest: Int32Array; readonly targets: Int32Array };

/** Rows between two of the moments at which the counting may be left for other work. */
const STRETCH = 1 << 16;

/** Counts of all rows; yields now and then. `follow`: of prompts, the tokens that may follow each; else 0. */
export function* countRows(rows: readonly Walked[], follow: number): Generator<void, RowCounts> {
  const of = () => new Int32Array(rows.length);
  const counts = { lengths: of(), longest: of(), targets: of() };
  const { lengths, longest, targets } = counts;
  for (let from = 0; from < rows.length; from += STRETCH) {
    const to = Math.min(rows.length, from + STRETCH);
    walk(
      rows,
      (_, mask, at, length, row) => {
        lengths[row]! += length - 1; // the last token of a sequence is only a target
        if (length - 1 > longest[row]!) longest[row] = length - 1;
        let own = 0;
        for (let i = at + 1; i < at + length; i++) own += mask[i]!;
        targets[row]! += own;
      },
      from,
      to,
    );
    for (const all of [lengths, longest, targets]) if (follow > 0) for (let row = from; row < to; row++) all[row]! += follow;
    yield;
  }
  return counts;
}
