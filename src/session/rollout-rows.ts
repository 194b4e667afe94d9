// Answers as rows that are learned, with the log-probabilities that their loss compares them with.

import type { Bus } from "../bus/bus.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Row, Segment } from "../schedule/pack.ts";
import type { SegmentRef } from "../schedule/segments.ts";
import { runThrough } from "./evaluate.ts";
import type { Rollouts } from "./rollouts.ts";

/** The base model by itself: what a fresh adapter begins as, and is measured against. */
export const BASE = -1;

/** A prompt with its answer, whose tokens are learned unless all of it is masked. */
export function rowOf(prompt: Int32Array, ids: readonly number[], isLearned: boolean): Row {
  const all = Int32Array.from([...prompt, ...ids]);
  return { ids: all, mask: Uint8Array.from(all, (_, i) => Number(isLearned && i >= prompt.length)) };
}

/**
 * Log-probabilities of each row's tokens under the adapter in a slot, or BASE, at a temperature; 0 where a token is no target.
 */
export async function logProbsOf(
  { bus, plan }: { readonly bus: Bus; readonly plan: Plan },
  { work: { batchSize } }: AdapterPlan,
  rows: readonly Row[],
  slot: number,
  temperature: number,
): Promise<Float32Array[]> {
  const asked = { objective: { name: "sft" }, references: null, logProbs: true, temperature } as const;
  const work = { slot, samples: rows, batchSize, ...asked };
  const found = new Array<Float32Array>(rows.length);
  for (const { rows: of, losses } of await runThrough(bus, plan, work).result)
    for (const [i, row] of of.entries()) {
      let target = 0;
      const own = losses[i]!.logProbs!;
      found[row] = Float32Array.from(rows[row]!.mask, (is, at) => (at > 0 && is === 1 ? own[target++]! : 0));
    }
  return found;
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
