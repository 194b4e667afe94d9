// From the schedule's references to the tokens that a stage is fed.

import { sum } from "../../base/shape.ts";
import { isPreference, type Objective, rowKindOf } from "../../objectives/registry.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import { type Row, type Segment, type SegmentPreference, sequencesOf, type Tokens } from "../../schedule/pack.ts";
import type { SegmentRef } from "../../schedule/segments.ts";
import type { RowReferences } from "./references.ts";

/** Tokens that are to be predicted; the first never is. */
export const countTargets = (sequence: Tokens): number => sum(sequence.mask.subarray(1));

/** How a share of these rows is judged, as a part of `whole`; nothing for supervised fine-tuning. */
function preferenceOf(
  objective: Objective,
  rows: readonly number[],
  totals: SegmentPreference["totals"],
  references: RowReferences | null,
): Pick<Segment, "preference"> {
  if (!isPreference(objective)) return {};
  return { preference: { objective, totals, references: references && rows.map((row) => references.get(row)!) } };
}

/**
 * What the rows of a mini-batch, or of an evaluation, are divided by: CIT learns both answers of a row,
 * preferences the first.
 */
export const totalsOf = (rows: readonly Row[], objective: Objective): SegmentPreference["totals"] => ({
  rows: rows.length,
  tokens: sum(rows.flatMap((row) => (rowKindOf(objective) === "paraphrased" ? sequencesOf(row) : [row])).map(countTargets)),
});

/** A share of a training pass, for the slot that the adapter has: its loss is averaged over the adapter's whole mini-batch. */
export function trainingSegment(
  { recipe }: AdapterPlan,
  slot: number,
  samples: readonly Row[],
  references: RowReferences | null,
  ref: SegmentRef,
): Segment {
  const totals = totalsOf(
    ref.miniBatch.map((row) => samples[row]!),
    recipe.objective,
  );
  return {
    adapter: slot,
    samples: ref.rows.map((row) => samples[row]!),
    seed: recipe.seed,
    step: ref.step,
    dropout: recipe.dropout,
    firstRow: ref.firstRow,
    weight: 1 / totals.tokens,
    ...preferenceOf(recipe.objective, ref.rows, totals, references),
  };
}

/** A share without dropout or gradient, as a part of `whole`. */
export const evaluationSegment = (
  slot: number,
  samples: readonly Row[],
  rows: readonly number[],
  totals: SegmentPreference["totals"],
  objective: Objective,
  references: RowReferences | null,
): Segment => ({
  adapter: slot,
  samples: rows.map((row) => samples[row]!),
  seed: 0,
  step: 0,
  dropout: 0,
  firstRow: 0,
  weight: 0,
  ...preferenceOf(objective, rows, totals, references),
});
