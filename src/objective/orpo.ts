// Odds ratio preference optimisation (Hong et al. 2024, equations 6 and 7): the chosen answer's own loss, and the odds of both answers, by
// mean log-probabilities.
//
//     -log pi(w) / targets  -  lambda log s(log odds(w) - log odds(l)),     log odds = m - log(1 - e^m),  m = log pi / |.|

import type { Objective } from "../base/objective.ts";
import type { RowLoss, Scored, ScoredRow, Whole } from "./preference.ts";
import { sigmoidLoss } from "./sigmoid.ts";

type Orpo = Extract<Objective, { name: "orpo" }>;

/** Nearer to certainty than this the odds have no end. */
const SURE = -1e-9;

function logOdds({ logp, targets }: Scored): { readonly value: number; readonly slope: number } {
  const mean = Math.min(logp / targets, SURE);
  const rest = -Math.expm1(mean);
  return { value: mean - Math.log(rest), slope: 1 / (rest * targets) };
}

export function orpo({ lambda }: Orpo, { own, other }: ScoredRow, { rows, tokens }: Whole): RowLoss {
  const [w, l] = [logOdds(own), logOdds(other)];
  const { value, slope } = sigmoidLoss(w.value - l.value, 0);
  const by = (lambda * slope) / rows;
  return {
    loss: (lambda * value) / rows - own.logp / tokens,
    slopes: [by * w.slope - 1 / tokens, -by * l.slope],
    rewards: [(lambda * own.logp) / own.targets, (lambda * other.logp) / other.targets],
  };
}
