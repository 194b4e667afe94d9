// What a run reports of a step's answers: rewards, lengths and ratios, under TRL's names, and the answers themselves.

import { maxOf, sum } from "../../base/shape.ts";
import { deviationOf, meanOf } from "../../objectives/advantages.ts";
import { type Grpo, rewardsOf } from "../../objectives/grpo.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import type { GroupScore } from "../training/executor.ts";
import type { Rollouts } from "./rollouts.ts";

const finite = (all: Readonly<Record<string, number>>) =>
  Object.fromEntries(Object.entries(all).filter(([, value]) => Number.isFinite(value)));

/** Of answers alone. Numbers that are not there, as the deviation of a single reward, are left out. */
export function answerScalars(settings: Grpo, { answers, rewards, zeroStd }: Rollouts): Readonly<Record<string, number>> {
  const lengths = answers.map(({ tokens }) => tokens);
  const named = rewardsOf(settings).flatMap(({ name }, k) => {
    const own = answers.map((answer) => answer.rewards[k] ?? Number.NaN);
    return [
      [`rewards/${name}/mean`, meanOf(own)],
      [`rewards/${name}/std`, deviationOf(own)],
    ] as const;
  });
  return finite({
    reward: meanOf(rewards),
    reward_std: deviationOf(rewards),
    frac_reward_zero_std: zeroStd,
    ...Object.fromEntries(named),
    "completions/mean_length": sum(lengths) / lengths.length,
    "completions/min_length": -maxOf(lengths.map((length) => -length)),
    "completions/max_length": maxOf(lengths),
    "completions/clipped_ratio": answers.filter(({ isTruncated }) => isTruncated).length / answers.length,
  });
}

/** The same with what the step found of their targets. */
export function rolloutScalars({ objective }: AdapterRecipe, rollouts: Rollouts, group: GroupScore) {
  const settings = rolloutsOf(objective)!;
  const clipped: Readonly<Record<string, number>> =
    settings.loss === "cispo"
      ? { cispo_clip_ratio: group.high }
      : {
          "clip_ratio/low_mean": group.low,
          "clip_ratio/high_mean": group.high,
          "clip_ratio/region_mean": group.low + group.high,
        };
  const divergence = settings.beta > 0 ? { kl: group.kl } : {};
  return { ...answerScalars(settings, rollouts), ...finite({ ...divergence, ...clipped }) };
}

/** The lines of completions.jsonl: `step` is the first that learns them, `row` counts the training rows from 1. */
export function* completionLines({ name, recipe }: AdapterPlan, { from, answers }: Rollouts): Generator<string> {
  const names = rewardsOf(rolloutsOf(recipe.objective)!).map((reward) => reward.name);
  for (const { row, sample, prompt, completion, tokens, isTruncated, rewards, advantage } of answers)
    yield JSON.stringify({
      ...{ type: "completion", adapter: name, step: from + 1, row: row + 1, sample: sample + 1, prompt, completion, tokens },
      ...{ truncated: isTruncated, rewards: Object.fromEntries(names.map((of, k) => [of, rewards[k]])), advantage },
    });
}
