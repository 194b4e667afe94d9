// The primitives: gradients of weighted tokens, steps, samples and files are those of a run, of `mlora generate`, of each other

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { reinforce } from "../../docs/examples/reinforce.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { readGenerateRequest } from "../../src/cli/generate/request.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import type { Sampling } from "../../src/data/sample.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { inputLength, longestSequence, type Row } from "../../src/schedule/pack.ts";
import { countTargets } from "../../src/session/batches.ts";
import { evaluate } from "../../src/session/evaluate.ts";
import { readState, writeState } from "../../src/session/export.ts";
import { generate } from "../../src/session/generate.ts";
import { openGeneration } from "../../src/session/open-generation.ts";
import { openPrimitives } from "../../src/session/open-primitives.ts";
import { type Primitives, rowOf } from "../../src/session/primitives.ts";
import { run } from "../../src/session/training.ts";
import { NAMES, ofStep, PAIRS, PrimitivesPlace, ROWS, rowsOf, STEPS, tokens, weighted } from "../helpers/primitives.ts";

const place = new PrimitivesPlace();
afterAll(() => place[Symbol.dispose]());

/** The references of pairs, once. */
const references = new Map<Row, readonly [number, number]>();
const total = (values: Float32Array): number => sum([...values].filter((value) => !Number.isNaN(value)));

/** A step of an adapter on its rows; the supervised ones by weights of their own. */
async function trainStep(on: Primitives, name: string, step: number): Promise<void> {
  const rows = ofStep(name, step);
  if (name !== "dpo") {
    const targets = sum(rows.map(countTargets));
    await on.forwardBackward(name, name === "dora" ? rows : weighted(rows, () => 1 / targets));
  } else await on.forwardBackward(name, rows, { references: rows.map((row) => references.get(row)!) });
  await on.step(name);
}

async function measureReferences(on: Primitives): Promise<void> {
  const { rows } = await on.forward("dpo", PAIRS, { references: PAIRS.map(() => [0, 0] as const) });
  for (const [i, { logProbs, other }] of rows.entries()) references.set(PAIRS[i]!, [total(logProbs), total(other!)]);
}

const bytes = (values: Float32Array): string => Buffer.from(values.buffer).toString("base64");
const saved = (folder: string): string => readFileSync(join(folder, "adapter_model.safetensors")).toString("base64");
async function weightsOf(on: Primitives, name: string): Promise<string> {
  const folder = mkdtempSync(join(place.root, "saved-"));
  await on.save(name, join(folder, name));
  return saved(join(folder, name));
}

let ran: Promise<Map<string, string>> | null = null;
/** What a run of all adapters comes to. */
const ofRun = (): Promise<Map<string, string>> => {
  ran ??= (async () => {
    const recipe = place.recipe(NAMES);
    const data = NAMES.map((name) => ({ train: rowsOf(name), eval: [] }));
    const summaries = data.map(({ train }) => {
      const rows = train.map((row) => ({
        length: inputLength(row),
        longest: longestSequence(row),
        targets: countTargets(row),
      }));
      return { train: rows, eval: [] };
    });
    const plan = makePlan(recipe, readModelSpec(place.model), summaries, [{ ...chooseDevice("cpu", "fp32"), host: "" }]);
    await using bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
    const output = join(place.root, "run");
    mkdirSync(output);
    const result = await run({ plan, data, bus, output, observers: [], stop: new AbortController().signal });
    expect(result.adapters.map(({ status }) => status)).toEqual(NAMES.map(() => "done"));
    return new Map(NAMES.map((name) => [name, saved(join(output, name))]));
  })();
  return ran;
};

describe("training", () => {
  test.each([1, 2])(
    "the steps of a run, call by call, on %i stages, with samples in between: the same bits",
    async (stages) => {
      await using on = await place.open(NAMES, stages);
      await measureReferences(on);
      const want = await ofRun();
      for (const step of range(STEPS)) {
        for (const name of NAMES) await trainStep(on, name, step);
        await on.sample(NAMES[step]!, [tokens(9)], { maxTokens: 4, n: 3, sampling: { temperature: 1 } });
      }
      for (const name of NAMES) expect(await weightsOf(on, name), name).toBe(want.get(name)!);
    },
  );

  test("adapters alone, whatever the others do between their calls: the same bits", async () => {
    const want = await ofRun();
    await using on = await place.open(["lora", "vera"]);
    for (const step of range(STEPS)) {
      const rows = ofStep("lora", step);
      const targets = sum(rows.map(countTargets));
      // Called without waiting: they are carried out in this order.
      const calls = [
        on.forwardBackward(
          "lora",
          weighted(rows, () => 1 / targets),
        ),
        on.forwardBackward("vera", ofStep("vera", step + 1)),
        on.sample("vera", [tokens(20)], { maxTokens: 3 }),
        on.step("lora"),
        on.discard("vera"),
      ];
      await Promise.all(calls);
    }
    expect(await weightsOf(on, "lora")).toBe(want.get("lora")!);
    await using alone = await place.open(["vera"]);
    expect(await weightsOf(on, "vera")).toBe(await weightsOf(alone, "vera"));
    for (const step of range(STEPS)) await trainStep(on, "vera", step);
    expect(await weightsOf(on, "vera")).toBe(want.get("vera")!);
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
      const { params: before } = (await readState(bus, 0))[0]!;
      await on.forwardBackward(name, ROWS);
      await on.step(name, { learningRate: 0.02 });
      const { params: after } = (await readState(bus, 0))[0]!;
      // What pads the factors stays zero.
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
      const gradient = (await readState(bus, 0))[0]!.m.map((value) => (name === "sgd" ? value : value / (1 - 0.9)));
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
  /** What `mlora generate` writes of a saved adapter, or of the base model (null). */
  async function generated(folder: string | null, prompt: readonly number[], sampling: Sampling, seed: number, limit: number) {
    const request = readGenerateRequest(place.model, { adapter: folder ?? "base", prompt: "x", raw: true });
    const device = chooseDevice("cpu", "fp32");
    const adapter = folder === null ? -1 : 0;
    const plan = planGeneration(request.spec, device, request.adapters, [{ adapter, prompt: prompt.length, limit }], "dense");
    await using engine = await openGeneration(plan, { folder: place.model }, request.adapters);
    const ids: number[] = [];
    for await (const { token } of generate(engine, [{ adapter, prompt, limit, seed }], sampling, new Set())) ids.push(token);
    return ids;
  }

  test.each(["lora", "dora", "vera", "pissa"])(
    "of an adapter in training are those of its export, token for token: %s",
    async (name) => {
      await using on = await place.open([name, ...NAMES.filter((other) => other !== name && other !== "dpo")]);
      for (const step of range(2)) await trainStep(on, name, step);
      const folder = join(place.root, `sampled-${name}`);
      await on.save(name, folder);
      const prompt = tokens(11);
      for (const sampling of [
        { temperature: 0, topK: 0, topP: 1 },
        { temperature: 1.3, topK: 0, topP: 0.95 },
      ]) {
        const [samples] = await on.sample(name, [prompt], { maxTokens: 12, n: 2, seed: 7, sampling });
        for (const [i, { ids, end }] of samples!.entries()) {
          expect(ids).toEqual(await generated(folder, prompt, sampling, 7 + i, 12));
          expect(end).toBe("length");
        }
        const [base] = (await on.sample(null, [prompt], { maxTokens: 12, seed: 7, sampling }))[0]!;
        expect(base!.ids).toEqual(await generated(null, prompt, sampling, 7, 12));
        expect(base!.logProbs).not.toEqual(samples![0]!.logProbs);
      }
    },
  );

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
  test.each(NAMES.filter((name) => name !== "dpo"))(
    "a state that is saved and loaded elsewhere goes on bit for bit: %s",
    async (name) => {
      const want = await ofRun();
      const folder = join(place.root, `state-${name}`);
      {
        await using on = await place.open([name]);
        await trainStep(on, name, 0);
        await on.saveState(name, folder);
        await trainStep(on, name, 1);
        await on.saveState(name, folder);
      }
      await using on = await openPrimitives(place.recipe([name, "dpo"]));
      expect(await on.load(name, folder)).toEqual({ steps: 2 });
      for (const step of range(STEPS).slice(2)) await trainStep(on, name, step);
      expect(await weightsOf(on, name)).toBe(want.get(name)!);
    },
  );

  test.each(["lora", "dora", "vera", "pissa"])(
    "weights are loaded as they were, with moments and steps anew: %s",
    async (name) => {
      await using on = await place.open([name]);
      await trainStep(on, name, 0);
      const weights = await weightsOf(on, name);
      const folder = join(place.root, `weights-${name}`);
      await on.save(name, folder);
      await on.forwardBackward(name, ROWS); // gradients that loading drops
      expect(await on.load(name, folder)).toEqual({ steps: 0 });
      expect(await weightsOf(on, name)).toBe(weights);
      await using fresh = await openPrimitives(place.recipe([name], { more: `from = "weights-${name}"` }));
      for (const other of [on, fresh]) await trainStep(other, name, 0);
      expect(await weightsOf(fresh, name)).toBe(await weightsOf(on, name));
    },
  );

  test("of another kind are refused, and nothing is changed", async () => {
    await using on = await place.open(["lora", "dora"]);
    const [state, weights] = [join(place.root, "other-state"), join(place.root, "other-weights")];
    await on.saveState("dora", state);
    await on.save("dora", weights);
    const before = await weightsOf(on, "lora");
    for (const folder of [state, weights, join(place.root, "nothing")])
      await expect(on.load("lora", folder)).rejects.toMatchObject({ code: "primitives.load" });
    expect(await weightsOf(on, "lora")).toBe(before);
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
