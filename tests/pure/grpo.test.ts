// GRPO's numbers against TRL's own, and what they promise besides.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { cacheBytes } from "../../src/engine/stage-buffers.ts";
import { weightBytes, wholeModel } from "../../src/engine/weights/weights.ts";
import { advantagesOf, deviationOf, meanOf } from "../../src/objectives/advantages.ts";
import { type Completion, completionLoss, completionScales, type GroupPolicy } from "../../src/objectives/group-policy.ts";
import { rewardsOf } from "../../src/objectives/grpo.ts";
import { rolloutsOf } from "../../src/objectives/registry.ts";
import { planAdapters } from "../../src/plan/adapters.ts";
import type { StageDevice } from "../../src/plan/plan.ts";
import { rolloutCache } from "../../src/plan/rollouts.ts";
import { formatRecipe, parseRecipe } from "../../src/recipe/load.ts";
import { GOLDEN, policyOf } from "../helpers/grpo-golden.ts";
import { tinySpec } from "../helpers/tiny.ts";

const near = (got: number, want: number, by = 1e-9) =>
  expect(Math.abs(got - want)).toBeLessThan(by * Math.max(1, Math.abs(want)));

describe.each(GOLDEN.cases.map((golden, i) => [`${i}: ${golden.settings.loss}`, golden] as const))(
  "TRL's case %s",
  (_, golden) => {
    const { settings, metrics } = golden;

    test("has the same advantages", () => {
      const found = advantagesOf(golden.rewards, { ...settings, generations: GOLDEN.generations });
      // TRL's correction of the deviation is a float32.
      for (const [i, advantage] of found.advantages.entries()) near(advantage, golden.advantages[i]!, 1e-7);
      near(meanOf(found.rewards), metrics["reward"]!);
      near(deviationOf(found.rewards), metrics["reward_std"]!, 1e-7);
      near(found.zeroStd, metrics["frac_reward_zero_std"]!, 1e-6);
    });

    test("has the same loss, slopes, divergence and share of clipped ratios", () => {
      const isLearned = (i: number) => golden.ended[i]! || !settings.maskTruncated;
      expect(golden.mask.map((of) => of.every((is) => is === 1))).toEqual(golden.mask.map((_, i) => isLearned(i)));
      const learned = golden.now.map(({ length }, i) => (isLearned(i) ? length : 0));
      const scales = completionScales(settings.loss, learned, GOLDEN.limit);
      const found = golden.now.map((now, i) =>
        completionLoss(policyOf(settings), {
          now: now.slice(0, learned[i]),
          old: golden.old?.[i] ?? null,
          reference: golden.reference?.[i] ?? null,
          advantage: golden.advantages[i]!,
          scale: scales[i]!,
        }),
      );
      near(sum(found.flatMap(({ targets }) => targets.map(({ loss }) => loss))), golden.loss);
      for (const [i, { targets }] of found.entries())
        for (const [t, slope] of golden.slopes[i]!.entries()) near(-(targets[t]?.weight ?? 0), slope);
      const ratios = sum(found.map((of) => of.ratios));
      const high = settings.loss === "cispo" ? "cispo_clip_ratio" : "clip_ratio/high_mean";
      near(sum(found.map((of) => of.high)) / ratios, metrics[high]!, 1e-6);
      near(sum(found.map((of) => of.low)) / ratios, metrics["clip_ratio/low_mean"] ?? 0, 1e-6);
      if (settings.beta > 0) near(sum(found.map((of) => of.kl)) / sum(learned), metrics["kl"]!);
    });
  },
);

const POLICIES: readonly GroupPolicy[] = (["token", "sequence"] as const).flatMap((level) => [
  { name: "grpo", form: "clipped", level, low: 0.8, high: 1.3, delta: null, beta: 0, isCorrected: true },
  { name: "grpo", form: "clipped", level, low: 0.8, high: 1.2, delta: 1.5, beta: 0.2, isCorrected: true },
  { name: "grpo", form: "clipped", level, low: 0.9, high: 1.2, delta: null, beta: 0.2, isCorrected: false },
]);

test.each(POLICIES.map((policy) => [JSON.stringify(policy), policy] as const))(
  "its slopes are the derivatives of its loss: %s",
  (_, policy) => {
    const rng = new Rng(31);
    const total = (of: Completion) => sum(completionLoss(policy, of).targets.map(({ loss }) => loss));
    for (let round = 0; round < 40; round++) {
      const now = range(5).map(() => -3 * rng.uniform() - 0.1);
      const other = () => now.map((p) => p + rng.uniform() - 0.5);
      const of = {
        now,
        old: other(),
        reference: policy.beta > 0 ? other() : null,
        advantage: 2 * rng.uniform() - 1,
        scale: 0.3,
      };
      const { targets } = completionLoss(policy, of);
      for (const i of now.keys()) {
        const at = (by: number) => total({ ...of, now: now.map((p, j) => (i === j ? p + by : p)) });
        const slope = (at(1e-6) - at(-1e-6)) / 2e-6;
        near(-targets[i]!.weight, slope, 1e-6);
      }
    }
  },
);

test("a completion that is as likely as when it was sampled has the loss of its advantage", () => {
  const of = { now: [-1, -2], reference: null, advantage: 0.7, scale: 0.5 };
  for (const policy of POLICIES) {
    const { targets, low, high } = completionLoss(policy, { ...of, old: null });
    expect(targets).toEqual([
      { loss: -0.35, weight: 0.35 },
      { loss: -0.35, weight: 0.35 },
    ]);
    expect(completionLoss(policy, { ...of, old: of.now }).targets).toEqual(targets);
    expect([low, high]).toEqual([0, 0]);
  }
});

test("nothing is made of rewards that are alike, that are missing, or of a completion without a target", () => {
  const settings = { generations: 2, weights: [1], scaleRewards: "group", aggregation: "sum_then_normalize" } as const;
  expect(advantagesOf([[3], [3], [null], [null]], settings).advantages).toEqual([0, 0, 0, 0]);
  expect(advantagesOf([[3], [null], [1], [2]], settings).advantages.slice(0, 2)).toEqual([0, 0]);
  const none = { now: [], old: null, reference: [], advantage: 1, scale: 1 };
  for (const policy of POLICIES) expect(completionLoss(policy, none)).toMatchObject({ targets: [], kl: 0, low: 0, high: 0 });
});

describe("a recipe is refused, with the place,", () => {
  const recipe = (objective: string, more = "") =>
    `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "a.jsonl"\n${more}\nobjective = ${objective}\n`;
  const table = (more: string) => `{ name = "grpo", reward = { command = ["r"] }, max_new_tokens = 9${more} }`;
  test.each([
    ["without a reward", recipe('"grpo"'), '9:1: adapter[0].objective is "grpo", expected a table with that name and reward'],
    ["with an empty reward", recipe('{ name = "grpo", reward = [] }'), "9:30: adapter[0].objective.reward is empty"],
    ["without a bound of cispo", recipe(table(', loss = "cispo"')), '9:1: adapter[0].objective has the loss "cispo"'],
    ["with luspo by tokens", recipe(table(', loss = "luspo"')), '9:1: adapter[0].objective has the loss "luspo"'],
    ["where no prompt fits", recipe(table(""), "max_length = 9"), "9:1: adapter[0].objective has max_new_tokens = 9"],
    ["with beta and from", recipe(table(", beta = 1"), 'from = "b"'), "9:1: adapter[0].objective has beta"],
    [
      "with held-out rows",
      recipe(table(""), "").replace('"a.jsonl"', '{ train = "a", split = 0.1 }'),
      "7:1: adapter[0].data has",
    ],
  ])("%s", (_, text, line) => {
    const parse = () => parseRecipe(text, "/r.toml");
    expect(parse).toThrow(
      expect.objectContaining({ code: "recipe.invalid", message: expect.stringContaining(`/r.toml:${line}`) }),
    );
  });

  test("and the whole one is what a run writes down", () => {
    const text = recipe(
      table(', epsilon_high = 0.3, reward = [{ url = "https://r", weight = 2 }, { command = ["r"], name = "s" }]').replace(
        'reward = { command = ["r"] }, ',
        "",
      ),
    );
    const read = parseRecipe(text, "/r.toml");
    const written = parseRecipe(formatRecipe(read), "/r.toml");
    expect(written).toEqual(read);
    const rewards = rewardsOf(rolloutsOf(read.adapters[0]!.objective)!);
    expect(rewards.map(({ name, weight }) => [name, weight])).toEqual([
      ["reward_1", 2],
      ["s", 1],
    ]);
  });
});

test("a plan takes a cache for the answers that are extended at once, in a fifth of what the model leaves", () => {
  const { adapters } = parseRecipe(
    `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "a.jsonl"\nbatch_size = 2\nobjective = { name = "grpo", reward = { command = ["r"] }, generations = 3, max_new_tokens = 9, iterations = 2 }\n`,
    "/r.toml",
  );
  const spec = tinySpec({});
  // Prompts of 12 tokens and more, with an answer.
  const rows = range(5).map((i) => ({ length: 20 + i, longest: 20 + i, targets: 9 }));
  const planned = planAdapters(adapters, spec, [{ train: rows, eval: [] }], 4096);
  expect(planned[0]).toMatchObject({ steps: 6, stepsPerEpoch: 6, rows: 5, prompts: { steps: 3 }, work: { batchSize: 6 } });
  const held = { format: "dense" } as const;
  const device = (kind: "cpu" | "cuda", freeBytes: number, ordinal = 0) =>
    ({ kind, ordinal, name: "one", compute: "f32", rowTile: 24, freeBytes, host: "" }) as unknown as StageDevice;
  const sequences = (...devices: readonly StageDevice[]) => rolloutCache(planned, spec, devices, null, held)!.sequences;
  for (const kind of ["cpu", "cuda"] as const)
    expect(rolloutCache(planned, spec, [device(kind, 1e9)], null, held)).toEqual({ sequences: 6, capacity: 25 });
  const weights = weightBytes(spec, wholeModel(spec), "f32", held);
  const one = cacheBytes("f32", spec, wholeModel(spec), { sequences: 1, capacity: 25 });
  const free = weights + 5 * 3.5 * one;
  expect(sequences(device("cuda", free))).toBe(3);
  expect(sequences(device("cuda", free), device("cuda", free))).toBe(3); // two stages on one
  expect(sequences(device("cuda", free / 2), device("cuda", free / 2, 1))).toBe(3); // on two
  expect(sequences(device("cuda", weights / 2))).toBe(1); // what then follows says what it lacks
});
