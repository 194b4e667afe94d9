// Kahneman-Tversky optimisation (Ethayarajh et al. 2024, equation 8): single answers, desirable or not, against a reference
// point, the divergence from the reference. It is estimated from answers to other prompts (a row's second sequence), over the
// micro-batch, and has no gradient.
//
//     r = log pi(y) - log ref(y)     z = max(0, mean of r over the others)
//     desirable: d (1 - s(beta (r - z)))     undesirable: u (1 - s(beta (z - r)))

import * as v from "valibot";
import { positive } from "../base/check.ts";
import { type BatchTotals, define, type RowLoss, reference, type ScoredRow, type SettingsOf } from "./definition.ts";
import { sigmoid } from "./sigmoid.ts";

const keys = {
  beta: v.optional(positive(), 0.1),
  desirable: v.optional(positive(), 1),
  undesirable: v.optional(positive(), 1),
  reference,
};
type Kto = SettingsOf<"kto", typeof keys>;

function lossOf({ beta, desirable, undesirable }: Kto, all: readonly ScoredRow[], { rows }: BatchTotals): RowLoss[] {
  let divergence = 0;
  for (const { other, reference } of all) divergence += other.logp - reference![1];
  const z = Math.max(0, divergence / all.length);
  return all.map(({ own, reference, label }) => {
    const ratio = own.logp - reference![0];
    const sign = label ? 1 : -1;
    const weight = label ? desirable : undesirable;
    const s = sigmoid(sign * beta * (ratio - z));
    const gradient = (-weight * sign * beta * s * (1 - s)) / rows;
    return { loss: (weight * (1 - s)) / rows, gradients: [gradient, 0], rewards: [beta * ratio, null] };
  });
}

export const kto = define({ name: "kto", keys, rows: "labelled", loss: lossOf });
