// Group relative policy optimisation (Shao et al. 2024) and its kin, as TRL's GRPOTrainer has them: the adapter answers each
// prompt several times, programs give the answers rewards, and each answer is learned by how much better it is than the others
// of its prompt. Advantages are computed in advantages.ts, the loss in group-policy.ts.

import * as v from "valibot";
import {
  between,
  command,
  expected,
  notNegative,
  oneOf,
  positive,
  table,
  text,
  truth,
  webAddress,
  whole,
} from "../base/check.ts";
import { define, type SettingsOf, type TableContext } from "./definition.ts";
import { graderSchema } from "./graders.ts";
import { completionScales, type GroupPolicy } from "./group-policy.ts";

const MOST_NAME = 40;
const named = {
  name: v.exactOptional(
    v.pipe(text, v.regex(/^[\w-]+$/, expected("letters, digits, '_' and '-'")), v.maxLength(MOST_NAME, expected("40 at most"))),
  ),
  weight: v.exactOptional(v.pipe(v.number(expected("a number")), v.finite(expected("a number")))),
};
const about = {
  ...named,
  /** Until all of a step's answers have their rewards. */
  seconds: v.exactOptional(positive()),
};
const program = table({ command, ...about });
const address = table({ url: webAddress, ...about });
/** What a reward is of: a program or an address. */
export const rewardSource = v.union([program, address], expected("{ command, seconds } or { url, seconds }"));
const graded = table({ grader: graderSchema, ...named });
const reward = v.union(
  [program, address, graded],
  expected("{ command, name, weight, seconds }, { url, name, weight, seconds } or { grader, name, weight }"),
);
const several = v.pipe(v.array(reward), v.minLength(1, "is empty, expected at least one reward"));

const keys = {
  reward: v.union([reward, several], expected("{ command }, { url }, { grader } or a list of them")),
  generations: v.optional(whole(2, 4096), 8),
  max_new_tokens: v.optional(whole(1, 1 << 20), 512),
  temperature: v.optional(positive(), 1),
  top_k: v.optional(whole(0, 1e9), 0),
  top_p: v.optional(v.pipe(positive("a number above 0, up to 1"), v.maxValue(1, expected("a number above 0, up to 1"))), 1),
  loss: v.optional(oneOf("dapo", "grpo", "dr_grpo", "cispo", "luspo"), "dapo"),
  beta: v.optional(notNegative, 0),
  bias_correction: v.optional(truth, true),
  epsilon: v.optional(between(0, 1), 0.2),
  epsilon_high: v.optional(positive()),
  delta: v.optional(positive()),
  importance_sampling_level: v.optional(oneOf("token", "sequence"), "token"),
  scale_rewards: v.optional(oneOf("group", "batch", "none"), "group"),
  aggregation: v.optional(oneOf("sum_then_normalize", "normalize_then_sum"), "sum_then_normalize"),
  mask_truncated: v.optional(truth, false),
  iterations: v.optional(whole(1, 1000), 1),
};

export type Grpo = SettingsOf<"grpo", typeof keys>;
export type Reward = Grpo["reward"] extends infer R ? Exclude<R, readonly unknown[]> : never;

function faultOf(
  { loss, epsilonHigh, delta, maxNewTokens, beta, importanceSamplingLevel }: Grpo,
  { maxLength, isContinued }: TableContext,
): string | null {
  if (loss === "cispo" && epsilonHigh === undefined)
    return 'has the loss "cispo", which bounds the ratio itself by epsilon_high: give it, 5 for instance';
  if (loss === "cispo" && delta !== undefined) return 'has delta, which the loss "cispo" does not have; leave it out';
  if (loss === "luspo" && importanceSamplingLevel !== "sequence")
    return 'has the loss "luspo", whose ratio is that of a sequence: give importance_sampling_level = "sequence"';
  if (maxNewTokens >= maxLength)
    return `has max_new_tokens = ${maxNewTokens}, and max_length is ${maxLength}: no prompt would fit; lower the one or raise the other`;
  if (beta > 0 && isContinued)
    return "has beta, a distance from the base model, and `from` continues an adapter; leave one out, or merge that adapter first (mlora export)";
  return null;
}

export const grpo = define({ name: "grpo", keys, rows: "prompt", loss: null, fault: faultOf });

/** Its rewards with their names, in the order of the recipe: an unnamed one is reward_1, reward_2, ... */
export const rewardsOf = ({ reward }: Grpo): readonly (Reward & { readonly name: string; readonly weight: number })[] =>
  [reward].flat().map((of, i, { length }) => ({
    ...of,
    name: of.name ?? (length === 1 ? "reward" : `reward_${i + 1}`),
    weight: of.weight ?? 1,
  }));

/** The same settings without what decides no number: how long rewards may take. */
export const withoutLimits = (of: Grpo): Grpo => ({
  ...of,
  reward: [of.reward].flat().map((reward): Reward => {
    const { seconds: _, ...rest } = { seconds: 0, ...reward };
    return rest;
  }),
});

/** The loss of its completions as it travels to the stages. */
export function groupPolicyOf(of: Grpo): GroupPolicy {
  const high = of.epsilonHigh ?? of.epsilon;
  return {
    ...{ name: "grpo", level: of.importanceSamplingLevel, low: 1 - of.epsilon, delta: of.delta ?? null },
    ...{ beta: of.beta, isCorrected: of.biasCorrection },
    ...(of.loss === "cispo" ? { form: "weighted", high } : { form: "clipped", high: 1 + high }),
  };
}

/** What each target of a batch's completions counts, by how many of each are learned. */
export const scalesOf = ({ loss, maxNewTokens }: Grpo, learned: readonly number[]): number[] =>
  completionScales(loss, learned, maxNewTokens);
