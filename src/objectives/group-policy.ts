// The loss of a group's completions, as TRL's GRPOTrainer defines it: GRPO (Shao et al. 2024), Dr. GRPO (Liu et al. 2025), DAPO
// (Yu et al. 2025), CISPO (MiniMax 2025), GSPO's ratio of sequences (Zheng et al. 2025) and LUSPO (2026). Pure numbers: the
// last stage needs the derivatives, the coordinator the values.
//
//     r = exp(p - q)     clipped: -min(r A, clamp(r, low, high) A)     weighted: -min(r, high) A p, the weight without gradient
//     with a reference f: + beta (exp(f - p) - (f - p) - 1), times r where it is corrected
//
// They differ in what a completion's targets count: its scale.

import * as v from "valibot";
import { type Output, real } from "../base/schema.ts";
import { range, sum } from "../base/shape.ts";
import type { TargetLoss } from "./policy.ts";

/** As it travels to the stages. `low` and `high` bound the ratio itself. */
export const groupPolicy = v.strictObject({
  name: v.literal("grpo"),
  form: v.picklist(["clipped", "weighted"]),
  /** Whether each target has a ratio, or all of a completion the exponential of their mean log-ratio. */
  level: v.picklist(["token", "sequence"]),
  low: real,
  high: real,
  /** The ratio at most where it is not clipped; null: any. */
  delta: v.nullable(real),
  beta: real,
  /** The divergence from the reference is multiplied by the ratio. */
  isCorrected: v.boolean(),
});
export type GroupPolicy = Output<typeof groupPolicy>;

/** Log-probabilities of a completion's targets. */
export type Completion = {
  readonly now: ArrayLike<number>;
  /** When they were sampled; null: as now. */
  readonly old: ArrayLike<number> | null;
  /** Under the reference; null without one. */
  readonly reference: ArrayLike<number> | null;
  readonly advantage: number;
  /** What each target's loss is multiplied by. */
  readonly scale: number;
};

export type CompletionLoss = {
  readonly targets: readonly TargetLoss[];
  /** Sum over its targets of the divergence from the reference. */
  readonly kl: number;
  /** Ratios that are clipped from below and from above, of `ratios` in all. */
  readonly low: number;
  readonly high: number;
  readonly ratios: number;
};

export function completionLoss(of: GroupPolicy, { now, old, reference, advantage, scale }: Completion): CompletionLoss {
  const places = range(now.length);
  const logRatios = places.map((i) => (old === null ? 0 : now[i]! - old[i]!));
  const isWhole = of.level === "sequence";
  const mean = sum(logRatios) / Math.max(1, now.length);
  const ratios = isWhole ? [Math.exp(mean)] : logRatios.map(Math.exp);
  const ratioOf = (i: number): number => ratios[isWhole ? 0 : i]!;
  const distances = reference === null ? [] : places.map((i) => distance(reference[i]! - now[i]!));
  const all = isWhole ? sum(distances.map(({ value }) => value)) / Math.max(1, now.length) : 0;
  let kl = 0;
  const targets = places.map((i): TargetLoss => {
    const ratio = ratioOf(i);
    const own = policyTerm(of, ratio, now[i]!, advantage);
    if (reference === null) return { loss: scale * own.loss, weight: scale * own.weight };
    const { value, slope } = distances[i]!;
    const factor = of.isCorrected ? ratio : 1;
    const ofRatio = of.isCorrected ? ratio * (isWhole ? all : value) : 0;
    kl += value * factor;
    return {
      loss: scale * (own.loss + of.beta * value * factor),
      weight: scale * (own.weight - of.beta * (slope * factor + ofRatio)),
    };
  });
  const held = ratios.map((ratio) => (of.delta === null ? ratio : Math.min(ratio, of.delta)));
  const isClipped = of.form === "clipped";
  return {
    targets,
    kl,
    low: isClipped && advantage < 0 ? held.filter((ratio) => ratio < of.low).length : 0,
    high: advantage > 0 ? held.filter((ratio) => ratio > of.high).length : 0,
    ratios: ratios.length,
  };
}

/** The divergence by the difference of the reference's log-probability to the present one, and its slope by the latter. */
const distance = (difference: number) => {
  const inverse = Math.exp(difference);
  return { value: inverse - difference - 1, slope: 1 - inverse };
};

/** A target's loss without a reference. An advantage of 0 is never multiplied by infinity. */
function policyTerm({ form, low, high, delta }: GroupPolicy, ratio: number, p: number, advantage: number): TargetLoss {
  if (advantage === 0) return { loss: 0, weight: 0 };
  if (form === "weighted") {
    const weight = Math.min(ratio, high) * advantage;
    return { loss: -weight * p, weight };
  }
  const most = delta ?? Number.POSITIVE_INFINITY;
  const own = Math.min(ratio, most) * advantage;
  const within = Math.min(Math.max(ratio, low), high) * advantage;
  const [ownMoves, withinMoves] = [Number(ratio <= most), Number(low <= ratio && ratio <= high)];
  const moves = own < within ? ownMoves : own > within ? withinMoves : (ownMoves + withinMoves) / 2;
  return { loss: -Math.min(own, within), weight: moves === 0 ? 0 : moves * ratio * advantage };
}

/**
 * What the targets of each completion count, by how many of each are learned: with "dapo" and "cispo" alike in the batch, with
 * "grpo" alike in a completion, with "dr_grpo" by the most tokens that a completion may have, with "luspo" whole.
 */
export function completionScales(
  loss: "dapo" | "grpo" | "dr_grpo" | "cispo" | "luspo",
  learned: readonly number[],
  most: number,
): number[] {
  const all = Math.max(1, sum(learned));
  const count = learned.length;
  const scales = { dapo: () => 1 / all, cispo: () => 1 / all, luspo: () => 1 / count, dr_grpo: () => 1 / (count * most) };
  return learned.map((targets) => (loss === "grpo" ? 1 / (count * Math.max(1, targets)) : scales[loss]()));
}
