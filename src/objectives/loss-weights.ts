// From the losses of a micro-batch's sequences to what each of its targets counts: for preferences, whose rows
// are known only by then.

import type { MicroBatch, PackedGroup, PackedPolicy, PackedPreference } from "../schedule/micro-batch.ts";
import type { RowLoss, ScoredRow } from "./definition.ts";
import { type CompletionLoss, completionLoss } from "./group-policy.ts";
import { type TargetLoss, targetLoss } from "./policy.ts";
import { preferenceLoss } from "./registry.ts";

/**
 * Of each sequence, the sum of its targets' losses: minus its log-probability. Of CIT, at a row's first
 * sequence also its cosines.
 */
type Losses = readonly {
  readonly loss: number;
  readonly similar?: readonly number[];
  /** Of each target; where there are policies or groups. */
  readonly logProbs?: Float32Array;
}[];

/** The rows of a share as they were found, and what they come to. */
export function scoreSegment({ sequences }: MicroBatch, preference: PackedPreference, losses: Losses) {
  const { objective, totals, references, firstSequence, labels } = preference;
  const scored = (at: number) => ({ logp: -losses[at]!.loss, targets: sequences[at]!.targets });
  const rows = labels.map((label, i): ScoredRow => {
    const at = firstSequence + 2 * i;
    const similar = losses[at]!.similar ?? null;
    return { own: scored(at), other: scored(at + 1), reference: references?.[i] ?? null, label, similar };
  });
  return { rows, found: preferenceLoss(objective, rows, totals) };
}

/** The losses of a policy's targets, from the first target of its first sequence on. */
export function scorePolicy({ loss, firstSequence, sequences, ...of }: PackedPolicy, losses: Losses): TargetLoss[] {
  const scored = losses.slice(firstSequence, firstSequence + sequences).flatMap(({ logProbs }) => [...logProbs!]);
  return scored.map((p, i) => targetLoss(loss, p, of.logProbs[i]!, of.advantages[i]!));
}

/** The losses of completions, of each from its first target on. */
export function scoreGroup(
  { policy, firstSequence, advantages, scales, ...of }: PackedGroup,
  losses: Losses,
): CompletionLoss[] {
  let target = 0;
  return Array.from(advantages, (advantage, i) => {
    const now = losses[firstSequence + i]!.logProbs!;
    const [from, to] = [target, target + now.length];
    target = to;
    const own = (values: Float32Array | null) => values?.subarray(from, to) ?? null;
    const [old, reference] = [own(of.old), own(of.references)];
    return completionLoss(policy, { now, old, reference, advantage, scale: scales[i]! });
  });
}

/** The targets' weights f32[T]: those of preferences, policies and groups by their slopes, all others as they are. */
export function lossWeights(batch: MicroBatch, losses: Losses): Float32Array {
  const weights = batch.weights.slice();
  for (const preference of batch.preferences) {
    const { found } = scoreSegment(batch, preference, losses);
    const gradients = found.flatMap((row: RowLoss) => row.gradients);
    for (const [i, gradient] of gradients.entries()) {
      const { firstTarget, targets } = batch.sequences[preference.firstSequence + i]!;
      weights.fill(-gradient, firstTarget, firstTarget + targets);
    }
  }
  for (const policy of batch.policies ?? []) {
    const { firstTarget } = batch.sequences[policy.firstSequence]!;
    for (const [i, { weight }] of scorePolicy(policy, losses).entries()) weights[firstTarget + i] = weight;
  }
  for (const group of batch.groups ?? []) {
    let at = batch.sequences[group.firstSequence]!.firstTarget;
    for (const { targets } of scoreGroup(group, losses)) for (const { weight } of targets) weights[at++] = weight;
  }
  return weights;
}
