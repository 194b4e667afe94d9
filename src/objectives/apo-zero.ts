// Anchored preference optimisation (D'Oosterlinck et al. 2024, equation 7): the preferred answer becomes likelier than under
// the reference and the other less likely, each measured against the reference alone. For data whose preferred answers are
// better than the model's own.
//
//     (1 - s(beta (log pi(w) - log ref(w))))  +  s(beta (log pi(l) - log ref(l)))

import * as v from "valibot";
import { positive } from "../base/check.ts";
import { type BatchTotals, define, eachRow, type RowLoss, reference, type ScoredRow, type SettingsOf } from "./definition.ts";
import { sigmoid } from "./sigmoid.ts";

const keys = { beta: v.optional(positive(), 0.1), reference };
type ApoZero = SettingsOf<"apo_zero", typeof keys>;

function lossOf({ beta }: ApoZero, { own, other, reference }: ScoredRow, { rows }: BatchTotals): RowLoss {
  const rewards = [beta * (own.logp - reference![0]), beta * (other.logp - reference![1])] as const;
  const [w, l] = [sigmoid(rewards[0]), sigmoid(rewards[1])];
  return {
    loss: (1 - w + l) / rows,
    gradients: [(-beta * w * (1 - w)) / rows, (beta * l * (1 - l)) / rows],
    rewards,
  };
}

export const apoZero = define({ name: "apo_zero", keys, rows: "paired", loss: eachRow(lossOf) });
