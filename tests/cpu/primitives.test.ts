// The primitives: gradients of weighted tokens, steps, samples and files are those of a run, of `mlora generate`, of each other

import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { reinforce } from "../../docs/examples/reinforce.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { layoutAdapter } from "../../src/methods/layout.ts";
import { targetLoss } from "../../src/objectives/policy.ts";
import type { MicroBatch } from "../../src/schedule/micro-batch.ts";
import { countTargets } from "../../src/session/evaluation/batches.ts";
import { evaluate } from "../../src/session/evaluation/evaluate.ts";
import { openPrimitives, planPrimitives } from "../../src/session/primitives/open.ts";
import { Primitives, rowOf } from "../../src/session/primitives/primitives.ts";
import { readState, writeState } from "../../src/session/state/slot.ts";
import { POLICY_LOSSES } from "../helpers/policies.ts";
import { PrimitivesPlace, ROWS, tokens, weighted } from "../helpers/primitives.ts";
import { primitivesAgree, total, trainStep, weightsOf } from "../helpers/primitives-suite.ts";

const place = new PrimitivesPlace();
afterAll(() => place[Symbol.dispose]());
const bytes = (values: Float32Array): string => Buffer.from(values.buffer).toString("base64");

primitivesAgree(place, [1, 2]);

describe("training", () => {
  test("calls of several adapters that are made together share packed batches, and none depends on the others", async () => {
    const names = ["lora", "dora", "vera"];
    const passes: number[] = [];
    const plan = planPrimitives(place.recipe(names));
    const bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
    const counting: Bus = {
      stages: 1,
      request(stage, request) {
        if ("batch" in request) passes.push((request.batch as MicroBatch).sequences.length);
        return bus.request(stage, request);
      },
      [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
    };
    await using on = await Primitives.begin(counting, plan, counting);
    const rows = names.map((_, i) => ROWS.slice(i, i + 3));
    const apart = [];
    for (const [i, name] of names.entries()) apart.push(await on.forward(name, rows[i]!));
    const passesApart = passes.length;
    const together = await Promise.all(names.map((name, i) => on.forward(name, rows[i]!)));
    for (const [i, { loss, rows: of }] of together.entries()) {
      expect(loss).toBe(apart[i]!.loss);
      for (const [at, { logProbs }] of of.entries()) expect(bytes(logProbs)).toBe(bytes(apart[i]!.rows[at]!.logProbs));
    }
    expect(passesApart).toBeGreaterThanOrEqual(3);
    expect(passes.length - passesApart).toBeLessThan(passesApart);
    expect(sum(passes.slice(passesApart))).toBe(9);
  });

  test("a step has the norm of the gradients that there are, however they came to be", async () => {
    await using on = await place.open(["lora"]);
    const [first, second] = [ROWS.slice(0, 3), ROWS.slice(3, 6)];
    const folder = join(place.model, "..", "as-it-was");
    await on.saveState("lora", folder);
    const normOf = async (...calls: readonly (typeof ROWS)[]) => {
      for (const rows of calls) await on.forwardBackward("lora", rows);
      const { gradNorm } = await on.step("lora", {}, calls.length === 0);
      await on.load("lora", folder);
      return gradNorm;
    };
    const [both, one] = [await normOf(first, second), await normOf(first)];
    expect(both).not.toBe(one);
    await on.forwardBackward("lora", second);
    await on.discard("lora");
    expect(await normOf(first)).toBe(one);
    await on.forwardBackward("lora", second);
    await on.load("lora", folder); // drops them
    expect(await normOf(first, second)).toBe(both);
    await on.forwardBackward("lora", second);
    await on.discard("lora");
    expect(await normOf()).toBe(0);
  });

  test("a step that a stage fails at fails the call after it", async () => {
    const plan = planPrimitives(place.recipe(["lora"]));
    const bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
    const failing: Bus = {
      stages: 1,
      request: (stage, request) =>
        request.type === "step" ? Promise.reject(new Error("the stage is gone")) : bus.request(stage, request),
      [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
    };
    await using on = await Primitives.begin(failing, plan, failing);
    await on.forwardBackward("lora", ROWS.slice(0, 3));
    await on.step("lora"); // sent, and not heard of yet
    await expect(on.forwardBackward("lora", ROWS.slice(0, 3))).rejects.toThrow("the stage is gone");
  });

  test("gradients add up over calls until the step", async () => {
    await using on = await place.open(["dora"]);
    await using other = await place.open(["dora"]);
    const rows = weighted(ROWS.slice(0, 6), (row, token) => Math.sin(row + token));
    await on.forwardBackward("dora", rows); // two micro-batches of three rows
    for (const part of [rows.slice(0, 3), rows.slice(3)]) await other.forwardBackward("dora", part);
    const [a, b] = [await on.step("dora"), await other.step("dora")];
    expect(a.gradNorm).toBeGreaterThan(0);
    expect(b.gradNorm / a.gradNorm).toBeCloseTo(1, 5); // other cuts, other orders of sums
    expect(a.step).toBe(1);
    expect(on.step("dora")).rejects.toThrow("has no gradient");
  });

  test.each(["sgd", "dora", "vera"])(
    "gradients of random weights agree with finite differences of the log-probabilities: %s",
    async (name) => {
      await using on = await place.open([name]);
      const { bus } = on;
      const random = new Rng(3);
      const { params: before } = (await readState(bus, 0, undefined))[0]!;
      await on.forwardBackward(name, ROWS);
      await on.step(name, { learningRate: 0.02 });
      const { params: after } = (await readState(bus, 0, undefined))[0]!;
      // What lies between the tensors stays zero.
      const start = after.map((value, i) => value + (value === before[i] ? 0 : 0.02 * random.normal()));
      const put = async (params: Float32Array) => {
        const [m, v] = [new Float32Array(params.length), new Float32Array(params.length)];
        await writeState(bus, 0, [{ params, m, v }]);
      };
      await put(start);
      const rows = weighted(ROWS.slice(0, 3), () => random.normal() * (random.uniform() < 0.3 ? 0 : 1));
      const losses = async () => {
        const found = await on.forward(name, rows);
        const loss = -sum(
          found.rows.map(({ logProbs }, i) =>
            sum([...logProbs].map((value, at) => (Number.isNaN(value) ? 0 : value * rows[i]!.weights![at]!))),
          ),
        );
        expect(found.loss).toBeCloseTo(loss, 9);
        return loss;
      };
      // The first moment after one step is the gradient, of AdamW (1 - beta1) times that.
      await using undropped = await place.open([name]);
      void undropped;
      await on.forwardBackward(name, rows);
      await on.step(name, { learningRate: 0, weightDecay: 0, maxGradNorm: null });
      const gradient = (await readState(bus, 0, undefined))[0]!.m!.map((value: number) =>
        name === "sgd" ? value : value / (1 - 0.9),
      );
      // DoRA's norms count as constants, so of its tensors only the lengths have the slope of the loss.
      const { spec, adapters, stages } = on.plan;
      const { tensors } = layoutAdapter(spec, stages[0]!.layerRange, adapters[0]!);
      const hasSlope = (i: number) =>
        tensors.some(({ factor, offset, columns, rows }) => {
          return i >= offset && i < offset + rows * columns && (name !== "dora" || factor === "M");
        });
      for (const i of gradient.keys()) if (!hasSlope(i)) gradient[i] = 0;
      const size = Math.sqrt(sum([...gradient].map((value) => value ** 2)));
      expect(size).toBeGreaterThan(1e-3);
      for (const along of [
        gradient.map((value) => value / size),
        gradient.map((value) => (value === 0 ? 0 : random.normal() / 20)),
      ]) {
        const h = 5e-3;
        const at = async (step: number) => {
          await put(Float32Array.from(start, (value, i) => value + step * along[i]!));
          return losses();
        };
        const slope = ((await at(h)) - (await at(-h))) / (2 * h);
        const want = sum([...gradient].map((value, i) => value * along[i]!));
        expect(Math.abs(slope - want) / size).toBeLessThan(5e-3);
      }
    },
  );
});

describe("losses of policies", () => {
  test.each(POLICY_LOSSES.map((loss) => [loss.name, loss] as const))(
    "%s is its definition, and learns as its slopes do as weights, whatever else is in the pass",
    async (_, policy) => {
      const random = new Rng(7);
      const rows = ROWS.slice(0, 4).map((row) => ({ ...row, mask: new Uint8Array(row.ids.length).fill(1) }));
      const states: string[] = [];
      await using on = await place.open(["lora", "dora"]);
      const { rows: found } = await on.forward("lora", rows);
      const sampled = found.map(({ logProbs }) => ({
        logProbs: logProbs.map((value) => (Number.isNaN(value) ? 0 : value + 0.3 * random.normal())),
        advantages: logProbs.map(() => random.normal()),
      }));
      const each = found.map(({ logProbs }, i) =>
        Array.from(logProbs, (p, at) =>
          at === 0 ? { loss: 0, weight: 0 } : targetLoss(policy, p, sampled[i]!.logProbs[at]!, sampled[i]!.advantages[at]!),
        ),
      );
      const want = sum(each.flat().map(({ loss }) => loss));
      const weights = each.map((of) => Float32Array.from(of, ({ weight }) => weight));
      for (const isPolicy of [true, false]) {
        await using trained = await place.open(["lora", "dora"]);
        const own = rows.map((row, i) => ({ ...row, ...(isPolicy ? { sampled: sampled[i]! } : { weights: weights[i]! }) }));
        const [made] = await Promise.all([
          trained.forwardBackward("lora", own, isPolicy ? { policy } : {}),
          ...(isPolicy ? [trained.forwardBackward("dora", ROWS)] : []),
        ]);
        if (isPolicy) expect(Math.abs(made.loss - want) / Math.abs(want)).toBeLessThan(1e-5);
        for (const [i, { logProbs }] of made.rows.entries()) expect(bytes(logProbs)).toBe(bytes(found[i]!.logProbs));
        expect((await trained.step("lora", { learningRate: 0.01 })).gradNorm).toBeGreaterThan(0);
        states.push(await weightsOf(place, trained, "lora"));
      }
      expect(states[0]).toBe(states[1]!);
    },
  );

  test("likeliest tokens are those of the log-probabilities", async () => {
    await using on = await place.open(["lora"]);
    const rows = ROWS.slice(0, 2).map((row) => ({ ...row, mask: new Uint8Array(row.ids.length).fill(1) }));
    const { rows: found } = await on.forward("lora", rows, { top: 3 });
    for (const [i, { top, logProbs }] of found.entries()) {
      expect(top!.length).toBe(rows[i]!.ids.length - 1);
      for (const [at, { ids, logProbs: of }] of top!.entries()) {
        expect([...of].sort((a, b) => b - a)).toEqual([...of]);
        const targets = Int32Array.from(rows[i]!.ids, (_, j) => (j === at + 1 ? ids[0]! : 0));
        const [again] = (await on.forward("lora", [{ ...rows[i]!, targets }])).rows;
        expect(again!.logProbs[at + 1]!).toBeCloseTo(of[0]!, 5);
        expect(of[0]!).toBeGreaterThanOrEqual(logProbs[at + 1]! - 1e-6);
      }
    }
  });
});

describe("log-probabilities", () => {
  test("are those of an evaluation, and with gradients the same where nothing is dropped", async () => {
    await using on = await place.open(["dora"]);
    await trainStep(on, "dora", 0);
    const { loss, rows } = await on.forward("dora", ROWS);
    const work = { slot: 0, samples: ROWS, batchSize: 3, objective: { name: "sft" }, references: null } as const;
    const evaluated = (await evaluate(on.bus, on.plan, work).result).loss;
    const targets = sum(ROWS.map(countTargets));
    expect(-sum(rows.map(({ logProbs }) => total(logProbs))) / targets).toBeCloseTo(evaluated, 12);
    expect(loss).toBeCloseTo(evaluated, 6);
    for (const [i, { logProbs }] of rows.entries()) {
      expect(logProbs.length).toBe(ROWS[i]!.ids.length);
      expect([...logProbs].map((value) => Number(!Number.isNaN(value)))).toEqual([...ROWS[i]!.mask]);
      expect(Math.max(...[...logProbs].filter((value) => !Number.isNaN(value)))).toBeLessThanOrEqual(0);
    }
    const trained = await on.forwardBackward("dora", ROWS);
    expect(trained.loss).toBe(loss);
    for (const [i, { logProbs }] of trained.rows.entries()) expect(bytes(logProbs)).toBe(bytes(rows[i]!.logProbs));
  });

  test("of samples are those of their rows", async () => {
    await using on = await place.open(["lora", "dora"]);
    await trainStep(on, "dora", 0);
    const prompt = tokens(5);
    const [samples] = await on.sample("dora", [prompt], { maxTokens: 8, n: 3, sampling: { temperature: 0.7 } });
    const { rows } = await on.forward(
      "dora",
      samples!.map(({ ids }) => rowOf(prompt, ids)),
    );
    for (const [i, { ids, logProbs }] of samples!.entries()) {
      expect(logProbs.length).toBe(ids.length);
      for (const [at, value] of logProbs.entries()) expect(value).toBeCloseTo(rows[i]!.logProbs[prompt.length + at]!, 4);
    }
    expect(new Set(samples!.map(({ ids }) => `${ids}`)).size).toBe(3);
  });
});

describe("samples", () => {
  test("end at stop tokens, and none depends on the others", async () => {
    await using on = await place.open(["lora", "dora"]);
    const prompts = range(20).map((i) => tokens(1 + (i % 9)));
    const sampling = { temperature: 1.5 };
    const together = await on.sample("lora", prompts, { maxTokens: 10, n: 2, sampling, seed: 3 });
    expect((await on.sample("lora", [prompts[13]!], { maxTokens: 10, n: 1, sampling, seed: 4 }))[0]![0]).toEqual(
      together[13]![1]!,
    );
    const stop = together[2]![0]!.ids[4]!;
    const [stopped] = (await on.sample("lora", [prompts[2]!], { maxTokens: 10, sampling, seed: 3, stops: [stop] }))[0]!;
    const want = together[2]![0]!.ids;
    expect(stopped).toMatchObject({ ids: want.slice(0, want.indexOf(stop) + 1), end: "stop" });
  });
});

describe("files", () => {
  test("of another kind are refused, and nothing is changed", async () => {
    await using on = await place.open(["lora", "dora"]);
    const [state, weights] = [join(place.root, "other-state"), join(place.root, "other-weights")];
    await on.saveState("dora", state);
    await on.save("dora", weights);
    const before = await weightsOf(place, on, "lora");
    for (const folder of [state, weights, join(place.root, "nothing")])
      await expect(on.load("lora", folder)).rejects.toMatchObject({ code: "primitives.load" });
    expect(await weightsOf(place, on, "lora")).toBe(before);
  });

  test("of another optimizer are refused: its moments would be taken for others", async () => {
    const same = 'rank = 4\nmax_length = 30\ndata = "none.jsonl"';
    const of = (optimizer: string) =>
      openPrimitives(place.recipeOf(`[[adapter]]\nname = "of"\n${same}\noptimizer = "${optimizer}"`));
    const optimizers = ["adamw", "sgd", "adamw-8bit"];
    const folderOf = (optimizer: string) => join(place.root, `moments-${optimizer}`);
    for (const optimizer of optimizers) {
      await using on = await of(optimizer);
      await trainStep(on, "of", 0);
      await on.saveState("of", folderOf(optimizer));
    }
    for (const optimizer of optimizers) {
      await using on = await of(optimizer);
      for (const other of optimizers.filter((name) => name !== optimizer))
        await expect(on.load("of", folderOf(other))).rejects.toMatchObject({ code: "primitives.load" });
      expect(await on.load("of", folderOf(optimizer))).toEqual({ steps: 1 });
    }
  });
});

test("the example of REINFORCE raises its reward", async () => {
  const low = (ids: readonly number[]) => ids.filter((id) => id < 100).length / ids.length;
  const recipe = place.recipeOf(
    '[[adapter]]\nname = "low"\ndata = "none.jsonl"\nrank = 8\nmax_length = 30\nlearning_rate = 0.03',
  );
  const task = { recipe, prompts: [[7, 200, 45]], reward: low, rounds: 16, group: 32, maxTokens: 8 };
  const rewards = await reinforce(task);
  const meanOf = (of: readonly number[]) => sum(of) / of.length;
  expect(rewards.length).toBe(16);
  expect(meanOf(rewards.slice(-5))).toBeGreaterThan(meanOf(rewards.slice(0, 5)) + 0.04); // 1280 tokens each: 0.02 by chance
});
