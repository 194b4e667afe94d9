// From the schedule's references to the tokens that a stage is fed.

import { sum } from "../base/shape.ts";
import { isPreference, type Objective, rowKindOf } from "../objectives/registry.ts";
import type { AdapterPlan } from "../plan/plan.ts";
import { type Row, type Share, type SharePreference, sequencesOf, type Tokens } from "../schedule/pack.ts";
import type { ShareRef } from "../schedule/shares.ts";
import type { RowReferences } from "./references.ts";

/** Tokens that are to be predicted; the first never is. */
export const countTargets = (sequence: Tokens): number => sum(sequence.mask.subarray(1));

/** How a share of these rows is judged, as a part of `whole`; nothing for supervised fine-tuning. */
function preferenceOf(
  objective: Objective,
  rows: readonly number[],
  whole: SharePreference["whole"],
  references: RowReferences | null,
): Pick<Share, "preference"> {
  if (!isPreference(objective)) return {};
  return { preference: { objective, whole, references: references && rows.map((row) => references.get(row)!) } };
}

/** What the rows of a mini-batch, or of an evaluation, are divided by: CIT learns both answers of a row, preferences the first. */
export const wholeOf = (rows: readonly Row[], objective: Objective): SharePreference["whole"] => ({
  rows: rows.length,
  tokens: sum(rows.flatMap((row) => (rowKindOf(objective) === "paraphrased" ? sequencesOf(row) : [row])).map(countTargets)),
});

/** A share of a training pass, for the slot that the adapter has: its loss is averaged over the adapter's whole mini-batch. */
export function trainingShare(
  { recipe }: AdapterPlan,
  slot: number,
  samples: readonly Row[],
  references: RowReferences | null,
  ref: ShareRef,
): Share {
  const whole = wholeOf(
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
    weight: 1 / whole.tokens,
    ...preferenceOf(recipe.objective, ref.rows, whole, references),
  };
}

/** A share without dropout or gradient, as a part of `whole`. */
export const evaluationShare = (
  slot: number,
  samples: readonly Row[],
  rows: readonly number[],
  whole: SharePreference["whole"],
  objective: Objective,
  references: RowReferences | null,
): Share => ({
  adapter: slot,
  samples: rows.map((row) => samples[row]!),
  seed: 0,
  step: 0,
  dropout: 0,
  firstRow: 0,
  weight: 0,
  ...preferenceOf(objective, rows, whole, references),
});
