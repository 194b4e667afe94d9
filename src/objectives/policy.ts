// Losses of reinforcement learning: each target has an advantage, and the log-probability with which it was sampled. Sums over
// all targets, as Tinker defines them. Pure numbers: the last stage needs the derivatives, the coordinator the values.

import * as v from "valibot";
import { type Output, real } from "../base/schema.ts";

const clipped = { low: real, high: real };

/** As it travels to the stages. The ratio is exp(p - q), of a target's log-probability now to that when it was sampled. */
export const policyLoss = v.variant("name", [
  v.strictObject({ name: v.literal("importance_sampling") }),
  /** Bounds of the ratio itself. */
  v.strictObject({ name: v.literal("ppo"), ...clipped }),
  v.strictObject({ name: v.literal("cispo"), ...clipped }),
  /** The square of p - q counts beta / 2. */
  v.strictObject({ name: v.literal("dro"), beta: real }),
]);
export type PolicyLoss = Output<typeof policyLoss>;

/** A target's loss, and the weight of its -p with the same gradient. */
export type TargetLoss = { readonly loss: number; readonly weight: number };

/** `p`, `q`: log-probabilities of the target now and when it was sampled. An advantage of 0 is never multiplied by infinity. */
export function targetLoss(of: PolicyLoss, p: number, q: number, advantage: number): TargetLoss {
  const ratio = advantage === 0 ? 0 : Math.exp(p - q);
  switch (of.name) {
    case "importance_sampling":
      return { loss: -ratio * advantage, weight: ratio * advantage };
    case "ppo": {
      const [own, within] = [ratio * advantage, clamp(ratio, of) * advantage];
      return { loss: -Math.min(own, within), weight: own <= within ? own : 0 };
    }
    case "cispo": {
      const weight = clamp(ratio, of) * advantage;
      return { loss: -weight * p, weight };
    }
    case "dro":
      return { loss: -(p * advantage - (of.beta / 2) * (p - q) ** 2), weight: advantage - of.beta * (p - q) };
  }
}

const clamp = (ratio: number, { low, high }: { readonly low: number; readonly high: number }): number =>
  Math.min(Math.max(ratio, low), high);
