// Direct preference optimisation (Rafailov et al. 2023, equation 7), with conservative labels (Mitchell 2023),
// the hinge of SLiC (Zhao et al. 2023), and IPO (Azar et al. 2023, equation 17), whose log-probabilities are
// means over targets as TRL has them.
//
//     z = (log pi(w) - log ref(w)) - (log pi(l) - log ref(l))      sigmoid: -log s(beta z)     hinge: max(0, 1 - beta z)
//     ipo: (z - 1 / (2 beta))^2

import * as v from "valibot";
import { oneOf, positive, share } from "../base/check.ts";
import { type BatchTotals, define, eachRow, type RowLoss, reference, type ScoredRow, type SettingsOf } from "./definition.ts";
import { hingeLoss, sigmoidLoss, smoothingFault } from "./sigmoid.ts";

const keys = {
  loss: v.optional(oneOf("sigmoid", "hinge", "ipo"), "sigmoid"),
  beta: v.optional(positive(), 0.1),
  label_smoothing: v.optional(share(), 0),
  reference,
};
type Dpo = SettingsOf<"dpo", typeof keys>;

function lossOf({ loss, beta, labelSmoothing }: Dpo, { own, other, reference }: ScoredRow, { rows }: BatchTotals): RowLoss {
  const mean = loss === "ipo";
  const [w, l] = [mean ? 1 / own.targets : 1, mean ? 1 / other.targets : 1];
  const ratios = [w * (own.logp - reference![0]), l * (other.logp - reference![1])] as const;
  const margin = ratios[0] - ratios[1];
  const measured =
    loss === "ipo"
      ? { value: (margin - 1 / (2 * beta)) ** 2, gradient: (2 * (margin - 1 / (2 * beta))) / beta }
      : loss === "hinge"
        ? hingeLoss(beta * margin)
        : sigmoidLoss(beta * margin, labelSmoothing);
  const gradient = (beta * measured.gradient) / rows;
  return {
    loss: measured.value / rows,
    gradients: [w * gradient, -l * gradient],
    rewards: [beta * ratios[0], beta * ratios[1]],
  };
}

export const dpo = define({ name: "dpo", keys, rows: "paired", loss: eachRow(lossOf), fault: smoothingFault });
