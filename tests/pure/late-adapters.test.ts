// What stages lack for adapters that join a run, and the cache of those that answer prompts.

import { expect, test } from "bun:test";
import { maxOf } from "../../src/base/shape.ts";
import { cacheBytes } from "../../src/engine/stage-buffers.ts";
import { weightBytes, wholeModel } from "../../src/engine/weights/weights.ts";
import type { AdapterPlan } from "../../src/plan/adapters.ts";
import { lacking, lateAdapters } from "../../src/plan/late-adapters.ts";
import { makePlan, type StageDevice } from "../../src/plan/plan.ts";
import { rolloutCache } from "../../src/plan/rollouts.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { tinySpec } from "../helpers/tiny.ts";

const CPU: StageDevice = {
  ...{ kind: "cpu", name: "made up", compute: "f32", rowTile: 24, threads: 2, ordinal: 0, count: 1, note: null, host: "" },
  ...{ totalBytes: 2 ** 50, freeBytes: 2 ** 50 },
};
const spec = tinySpec({ maxPositions: 1000 });
const recipeOf = (adapters: readonly string[], run = "") =>
  parseRecipe(
    `[model]\npath = "m"\n[run]\noutput = "o"\ndevice = "cpu"\ntokens_per_microbatch = 64\n${run}\n` +
      adapters
        .map((text, i) => `[[adapter]]\nname = "a${i}"\ndata = "x.jsonl"\nsteps = 1\nmax_length = 900\n${text}\n`)
        .join(""),
    "/here/r.toml",
  );
const summary = (...lengths: readonly number[]) => ({
  train: lengths.map((length) => ({ length, longest: length, targets: 1 })),
  eval: [],
});
const answering = (tokens: number, generations = 2, batch = 1) =>
  `rank = 4\nbatch_size = ${batch}\nobjective = { name = "grpo", reward = { command = ["true"], name = "r" }, generations = ${generations}, max_new_tokens = ${tokens} }`;

const opened = makePlan(recipeOf(["rank = 8\ntargets = ['q_proj']"]), spec, [summary(40, 30)], [CPU]);
const lackOf = (text: string, ...lengths: readonly number[]) => {
  const data = [summary(...lengths)];
  return lacking(opened, lateAdapters(opened, recipeOf([text]).adapters, data), data);
};

test("stages take what is as large as what they were opened for, and say what they lack for anything larger", () => {
  const own = "targets = ['q_proj']\n";
  expect(lackOf(`${own}rank = 8`, 40, 30)).toBeNull();
  expect(lackOf(`${own}rank = 3\nbatch_size = 1`, 7)).toBeNull();
  const { positions, rows } = opened.stages[0]!.sizes;
  expect(lackOf(`${own}rank = 8`, positions)).toBeNull(); // no more than there are
  expect(lackOf(`${own}rank = 8`, positions + 1)).toBe(
    `room for rows of ${positions + 1} tokens: they have it for ${positions}`,
  );
  expect(lackOf(`${own}rank = 8\nmethod = "dora"`, 40)).toMatch(/^room for DoRA on /);
  expect(lackOf(`${own}rank = 80`, 40)).toMatch(/^room for (rank 80 on|the gradients of|an adapter of) /);
  expect(lackOf("targets = ['q_proj', 'down_proj']\nrank = 2", 40)).toMatch(/^room for /);
  expect(rows).toBeGreaterThanOrEqual(positions);
  const short = makePlan(recipeOf([`${own}rank = 8\nbatch_size = 1`]), spec, [summary(10, 9)], [CPU]);
  const many = [summary(10, 9, 10, 8)];
  const late = (batch: number) =>
    lacking(short, lateAdapters(short, recipeOf([`${own}rank = 8\nbatch_size = ${batch}`]).adapters, many), many);
  expect(short.stages[0]!.sizes.rows).toBe(24);
  expect([late(2), late(4)]).toEqual([null, "room for a micro-batch of 48 tokens: they have it for 24"]);
});

test("stages without a cache lack one for adapters that answer prompts; with one they take answers as long as it holds", () => {
  const of = (plan: typeof opened, text: string, prompt: number) => {
    const data = [summary(prompt)];
    return lacking(plan, lateAdapters(plan, recipeOf([text]).adapters, data), data);
  };
  expect(of(opened, `targets = ['q_proj']\n${answering(5)}`, 10)).toMatch(
    /^cache for answers of \d+ tokens with their prompts$/,
  );
  const plan = makePlan(recipeOf([answering(20)]), spec, [summary(20)], [CPU]);
  const { capacity } = plan.stages[0]!.sizes.cache!;
  expect([capacity, maxOf(plan.adapters[0]!.work.lengths)]).toEqual([21, 20]);
  expect(of(plan, answering(20), 20)).toBeNull();
  expect(of(plan, answering(20), 21)).toBe("cache for answers of 22 tokens with their prompts");
});

test("the cache has sequences for those that answer at once: the most that the slots can hold", () => {
  const sequences = (texts: readonly string[], run = "", freeBytes = CPU.freeBytes) => {
    const data = texts.map(() => summary(12));
    return makePlan(recipeOf(texts, run), spec, data, [{ ...CPU, freeBytes }]).stages[0]!.sizes.cache?.sequences;
  };
  expect(sequences(["rank = 2"])).toBeUndefined();
  const texts = [answering(6, 2, 1), answering(6, 2, 2), "rank = 2", answering(6, 3, 1)];
  const each = (plan: AdapterPlan) => plan.work.batchSize * plan.work.accumulation;
  const wanted = makePlan(
    recipeOf(texts),
    spec,
    texts.map(() => summary(12)),
    [CPU],
  )
    .adapters.filter(({ prompts }) => prompts !== null)
    .map(each);
  expect(new Set(wanted).size).toBe(3);
  const largest = wanted.toSorted((a, b) => b - a);
  expect(sequences(texts)).toBe(largest[0]! + largest[1]! + largest[2]!);
  expect(sequences(texts, "slots = 2")).toBe(largest[0]! + largest[1]!);
  expect(sequences(texts, "slots = 1")).toBe(largest[0]);
  const plan = makePlan(
    recipeOf(["accumulation = 3", ""].map((text) => `${answering(6, 2)}\n${text}`)),
    spec,
    [summary(12), summary(12)],
    [CPU],
  );
  const whole = wholeModel(spec);
  const weights = weightBytes(spec, whole, "f32", { format: "dense" });
  const one = cacheBytes("f32", spec, whole, { sequences: 1, capacity: 13 });
  const within = (room: number) =>
    rolloutCache(plan.adapters, spec, [{ ...CPU, freeBytes: weights + room }], null, { format: "dense" })!.sequences;
  expect(within(1e9)).toBe(6 + 2);
  for (const fitting of [1, 2, 5, 8]) {
    expect(within(5 * fitting * one + 5)).toBe(fitting);
    expect(within(5 * fitting * one - 5)).toBe(Math.max(1, fitting - 1));
  }
  expect(within(0)).toBe(1); // one at least: what it takes is in the plan's memory
});
