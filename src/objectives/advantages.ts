// From rewards to advantages, as TRL's GRPOTrainer computes them: of each completion, how much better it is than its group.

import { range, sum } from "../base/shape.ts";

export type AdvantageSettings = {
  /** Completions of a group, which follow each other. */
  readonly generations: number;
  /** Of each reward. */
  readonly weights: readonly number[];
  /** What advantages are divided by: the standard deviation in the group, in the batch, or nothing. */
  readonly scaleRewards: "group" | "batch" | "none";
  /** Whether rewards are added and then normalised, or each by itself first. */
  readonly aggregation: "sum_then_normalize" | "normalize_then_sum";
};

export type Advantages = {
  /** 0 for a completion that no reward says anything of. */
  readonly advantages: readonly number[];
  /** The weighted sum of a completion's rewards; NaN where none says anything. */
  readonly rewards: readonly number[];
  /** The share of completions whose group, or batch, has no deviation. */
  readonly zeroStd: number;
};

const EPSILON = 1e-4;
/** As far from 0 as torch.isclose still takes for it. */
const CLOSE = 1e-8;

/** `rewards`: of each completion a number by each reward, or null where it says nothing of it. */
export function advantagesOf(rewards: readonly (readonly (number | null)[])[], settings: AdvantageSettings): Advantages {
  const { generations, weights, scaleRewards, aggregation } = settings;
  const given = rewards.map((of) => of.map((reward) => reward ?? Number.NaN));
  const totals = given.map((of) => weighted(of, weights));
  const groupOf = (values: readonly number[], i: number): readonly number[] => {
    const first = i - (i % generations);
    return values.slice(first, first + generations);
  };
  const made = { advantages: [] as number[], rewards: totals, zeroStd: 0 };
  const finish = (advantages: readonly number[], deviations: readonly number[]): Advantages => ({
    ...made,
    advantages: advantages.map((advantage) => (Number.isNaN(advantage) ? 0 : advantage)),
    zeroStd: deviations.filter((deviation) => deviation <= CLOSE).length / Math.max(1, deviations.length),
  });
  if (aggregation === "normalize_then_sum") {
    const each = range(weights.length).map((k) => {
      const own = given.map((of) => of[k]!);
      return own.map((reward, i) => {
        const group = groupOf(own, i);
        return (reward - meanOf(group)) / (deviationOf(group) + EPSILON);
      });
    });
    const summed = given.map((_, i) =>
      weighted(
        each.map((of) => of[i]!),
        weights,
        Number.isNaN(totals[i]!),
      ),
    );
    const [mean, deviation] = [meanOf(summed), deviationOf(summed)];
    return finish(
      summed.map((reward) => (reward - mean) / (deviation + EPSILON)),
      summed.map(() => deviation),
    );
  }
  const whole = deviationOf(totals);
  const deviations = totals.map((_, i) => (scaleRewards === "batch" ? whole : deviationOf(groupOf(totals, i))));
  return finish(
    totals.map((reward, i) => {
      const advantage = reward - meanOf(groupOf(totals, i));
      return scaleRewards === "none" ? advantage : advantage / (deviations[i]! + EPSILON);
    }),
    deviations,
  );
}

/** The weighted sum of what is there; NaN where nothing is, or `isNone`. */
function weighted(rewards: readonly number[], weights: readonly number[], isNone = rewards.every(Number.isNaN)): number {
  if (isNone) return Number.NaN;
  return sum(rewards.map((reward, k) => (Number.isNaN(reward) ? 0 : reward * weights[k]!)));
}

/** Of the numbers among them; NaN where there are none. */
export function meanOf(values: readonly number[]): number {
  const numbers = values.filter((value) => !Number.isNaN(value));
  return sum(numbers) / numbers.length;
}

/** With Bessel's correction; NaN for fewer than two numbers. */
export function deviationOf(values: readonly number[]): number {
  const numbers = values.filter((value) => !Number.isNaN(value));
  if (numbers.length < 2) return Number.NaN;
  const mean = meanOf(numbers);
  return Math.sqrt(sum(numbers.map((value) => (value - mean) ** 2)) / (numbers.length - 1));
}
