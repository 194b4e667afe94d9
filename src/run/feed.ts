// From the schedule's references to the tokens that a stage is fed.

import { sum } from "../base/shape.ts";
import type { AdapterPlan } from "../plan/plan.ts";
import type { Share, Tokens } from "../schedule/pack.ts";
import type { ShareRef } from "../schedule/shares.ts";

/** Tokens that are to be predicted; the first never is. */
export const countTargets = (sample: Tokens): number => sum(sample.mask.subarray(1));

/** A share of a training pass, for the slot that the adapter has: its loss is averaged over the targets of the adapter's whole mini-batch. */
export function trainingShare({ recipe }: AdapterPlan, slot: number, samples: readonly Tokens[], ref: ShareRef): Share {
  const targets = sum(ref.miniBatch.map((row) => countTargets(samples[row]!)));
  return {
    adapter: slot,
    samples: ref.rows.map((row) => samples[row]!),
    seed: recipe.seed,
    step: ref.step,
    dropout: recipe.dropout,
    firstRow: ref.firstRow,
    weight: 1 / targets,
  };
}

/** A share without dropout or gradient. */
export const evaluationShare = (slot: number, samples: readonly Tokens[]): Share => ({
  adapter: slot,
  samples,
  seed: 0,
  step: 0,
  dropout: 0,
  firstRow: 0,
  weight: 0,
});
