// Simple preference optimisation (Meng et al. 2024, equation 6): mean log-probabilities, no reference, and a
// margin that must be reached.
//
//     -log s(beta (log pi(w) / |w| - log pi(l) / |l|) - gamma)

import * as v from "valibot";
import { notNegative, positive, share } from "../base/check.ts";
import { type BatchTotals, define, eachRow, type RowLoss, type ScoredRow, type SettingsOf } from "./definition.ts";
import { sigmoidLoss } from "./sigmoid.ts";

const keys = {
  beta: v.optional(positive(), 2),
  gamma: v.optional(notNegative, 1),
  label_smoothing: v.optional(share(), 0),
};
type Simpo = SettingsOf<"simpo", typeof keys>;

function lossOf({ beta, gamma, labelSmoothing }: Simpo, { own, other }: ScoredRow, { rows }: BatchTotals): RowLoss {
  const rewards = [(beta * own.logp) / own.targets, (beta * other.logp) / other.targets] as const;
  const { value, gradient } = sigmoidLoss(rewards[0] - rewards[1] - gamma, labelSmoothing);
  const by = (targets: number) => (beta * gradient) / (targets * rows);
  return { loss: value / rows, gradients: [by(own.targets), -by(other.targets)], rewards };
}

export const simpo = define({ name: "simpo", keys, rows: "paired", loss: eachRow(lossOf) });
