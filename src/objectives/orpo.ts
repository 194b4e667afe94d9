// Odds ratio preference optimisation (Hong et al. 2024, equations 6 and 7): the chosen answer's own loss, and the odds of
// both answers, by mean log-probabilities.
//
//     -log pi(w) / targets  -  lambda log s(log odds(w) - log odds(l)),     log odds = m - log(1 - e^m),  m = log pi / |.|

import * as v from "valibot";
import { positive } from "../base/check.ts";
import { type BatchTotals, define, eachRow, type RowLoss, type Scored, type ScoredRow, type SettingsOf } from "./definition.ts";
import { sigmoidLoss } from "./sigmoid.ts";

const keys = {
  lambda: v.optional(positive(), 0.1),
};
type Orpo = SettingsOf<"orpo", typeof keys>;

/** Nearer to certainty than this the odds have no end. */
const SURE = -1e-9;

function logOdds({ logp, targets }: Scored): { readonly value: number; readonly gradient: number } {
  const mean = Math.min(logp / targets, SURE);
  const rest = -Math.expm1(mean);
  return { value: mean - Math.log(rest), gradient: 1 / (rest * targets) };
}

function lossOf({ lambda }: Orpo, { own, other }: ScoredRow, { rows, tokens }: BatchTotals): RowLoss {
  const [w, l] = [logOdds(own), logOdds(other)];
  const { value, gradient } = sigmoidLoss(w.value - l.value, 0);
  const by = (lambda * gradient) / rows;
  return {
    loss: (lambda * value) / rows - own.logp / tokens,
    gradients: [by * w.gradient - 1 / tokens, -by * l.gradient],
    rewards: [(lambda * own.logp) / own.targets, (lambda * other.logp) / other.targets],
  };
}

export const orpo = define({ name: "orpo", keys, rows: "paired", loss: eachRow(lossOf) });
