// Answers as rows that are learned.

import type { AdapterPlan } from "../../plan/plan.ts";
import type { Row, Segment } from "../../schedule/pack.ts";
import type { SegmentRef } from "../../schedule/segments.ts";
import type { Rollouts } from "./rollouts.ts";

/** A prompt with its answer, whose tokens are learned unless all of it is masked. */
export function rowOf(prompt: Int32Array, ids: readonly number[], isLearned: boolean): Row {
  const all = Int32Array.from([...prompt, ...ids]);
  return { ids: all, mask: Uint8Array.from(all, (_, i) => Number(isLearned && i >= prompt.length)) };
}

/** A share of a training pass: answers that are learned, for the slot that the adapter has. */
export const rolloutSegment = (
  { recipe }: AdapterPlan,
  slot: number,
  { rows, policy, temperature }: Pick<Rollouts, "rows" | "policy" | "temperature">,
  ref: SegmentRef,
): Segment => ({
  adapter: slot,
  samples: ref.rows.map((row) => rows[row]!),
  ...{ seed: recipe.seed, step: ref.step, dropout: recipe.dropout, firstRow: ref.firstRow },
  ...{ weight: 1, group: policy, temperature },
});
