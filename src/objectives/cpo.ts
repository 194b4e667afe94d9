// Contrastive preference optimisation (Xu et al. 2024, equations 5 to 7): a preference without a reference, and the chosen
// answer's own loss, a mean over the targets of all chosen answers.
//
//     -log s(beta (log pi(w) - log pi(l)))  -  alpha log pi(w) / targets

import * as v from "valibot";
import { notNegative, oneOf, positive, share } from "../base/check.ts";
import { type BatchTotals, define, eachRow, type RowLoss, type ScoredRow, type SettingsOf } from "./definition.ts";
import { hingeLoss, sigmoidLoss, smoothingFault } from "./sigmoid.ts";

const keys = {
  loss: v.optional(oneOf("sigmoid", "hinge"), "sigmoid"),
  beta: v.optional(positive(), 0.1),
  label_smoothing: v.optional(share(), 0),
  /** Weight of the chosen answer's own loss. */
  alpha: v.optional(notNegative, 1),
};
type Cpo = SettingsOf<"cpo", typeof keys>;

function lossOf({ loss, beta, labelSmoothing, alpha }: Cpo, { own, other }: ScoredRow, { rows, tokens }: BatchTotals): RowLoss {
  const margin = beta * (own.logp - other.logp);
  const measured = loss === "hinge" ? hingeLoss(margin) : sigmoidLoss(margin, labelSmoothing);
  const gradient = (beta * measured.gradient) / rows;
  return {
    loss: measured.value / rows - (alpha * own.logp) / tokens,
    gradients: [gradient - alpha / tokens, -gradient],
    rewards: [beta * own.logp, beta * other.logp],
  };
}

export const cpo = define({ name: "cpo", keys, rows: "paired", loss: eachRow(lossOf), fault: smoothingFault });
