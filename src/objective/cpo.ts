// Contrastive preference optimisation (Xu et al. 2024, equations 5 to 7): a preference without a reference, and the chosen answer's own
// loss, a mean over the targets of all chosen answers.
//
//     -log s(beta (log pi(w) - log pi(l)))  -  alpha log pi(w) / targets

import type { Objective } from "../base/objective.ts";
import type { RowLoss, ScoredRow, Whole } from "./preference.ts";
import { hingeLoss, sigmoidLoss } from "./sigmoid.ts";

type Cpo = Extract<Objective, { name: "cpo" }>;

export function cpo({ loss, beta, labelSmoothing, alpha }: Cpo, { own, other }: ScoredRow, { rows, tokens }: Whole): RowLoss {
  const margin = beta * (own.logp - other.logp);
  const measured = loss === "hinge" ? hingeLoss(margin) : sigmoidLoss(margin, labelSmoothing);
  const slope = (beta * measured.slope) / rows;
  return {
    loss: measured.value / rows - (alpha * own.logp) / tokens,
    slopes: [slope - alpha / tokens, -slope],
    rewards: [beta * own.logp, beta * other.logp],
  };
}
