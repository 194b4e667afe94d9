// Simple preference optimisation (Meng et al. 2024, equation 6): mean log-probabilities, no reference, and a margin that must be reached.
//
//     -log s(beta (log pi(w) / |w| - log pi(l) / |l|) - gamma)

import type { Objective } from "../base/objective.ts";
import type { RowLoss, ScoredRow, Whole } from "./preference.ts";
import { sigmoidLoss } from "./sigmoid.ts";

type Simpo = Extract<Objective, { name: "simpo" }>;

export function simpo({ beta, gamma, labelSmoothing }: Simpo, { own, other }: ScoredRow, { rows }: Whole): RowLoss {
  const rewards = [(beta * own.logp) / own.targets, (beta * other.logp) / other.targets] as const;
  const { value, slope } = sigmoidLoss(rewards[0] - rewards[1] - gamma, labelSmoothing);
  const by = (targets: number) => (beta * slope) / (targets * rows);
  return { loss: value / rows, slopes: [by(own.targets), -by(other.targets)], rewards };
}
