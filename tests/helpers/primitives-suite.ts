// What the primitives have in common with a run and with `mlora generate`, bit for bit, on any device.

import { describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { heldWeights } from "../../src/base/precision.ts";
import type { Sampling } from "../../src/base/sample.ts";
import { range, sum } from "../../src/base/shape.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { inputLength, longestSequence, type Row } from "../../src/schedule/pack.ts";
import { countTargets } from "../../src/session/batches.ts";
import { generate } from "../../src/session/generate.ts";
import { readGenerateRequest } from "../../src/session/generation-request.ts";
import { openGeneration } from "../../src/session/open-generation.ts";
import { openPrimitives } from "../../src/session/open-primitives.ts";
import type { Primitives } from "../../src/session/primitives.ts";
import { run } from "../../src/session/training.ts";
import { NAMES, ofStep, PAIRS, type PrimitivesPlace, ROWS, rowsOf, STEPS, tokens, weighted } from "./primitives.ts";

/** The references of pairs, once. */
const references = new Map<Row, readonly [number, number]>();
export const total = (values: Float32Array): number => sum([...values].filter((value) => !Number.isNaN(value)));

/** A step of an adapter on its rows; the supervised ones by weights of their own. */
export async function trainStep(on: Primitives, name: string, step: number): Promise<void> {
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

const saved = (folder: string): string => readFileSync(join(folder, "adapter_model.safetensors")).toString("base64");
export async function weightsOf(place: PrimitivesPlace, on: Primitives, name: string): Promise<string> {
  const folder = mkdtempSync(join(place.root, "saved-"));
  await on.save(name, join(folder, name));
  return saved(join(folder, name));
}

/** What a run of all adapters comes to. */
async function runAll(place: PrimitivesPlace): Promise<ReadonlyMap<string, string>> {
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
  const device = { ...chooseDevice(place.device, place.precision), host: "" };
  const plan = makePlan(recipe, readModelSpec(place.model), summaries, [device], { exact: { format: "bf16", others: [] } });
  await using bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
  const output = join(place.root, "run");
  mkdirSync(output);
  const result = await run({ plan, data, bus, output, emit: () => undefined, stop: new AbortController().signal });
  expect(result.adapters.map(({ status }) => status)).toEqual(NAMES.map(() => "done"));
  return new Map(NAMES.map((name) => [name, saved(join(output, name))]));
}

/** What `mlora generate` writes of a saved adapter, or of the base model (null). */
async function generated(
  place: PrimitivesPlace,
  folder: string | null,
  prompt: readonly number[],
  sampling: Sampling,
  seed: number,
  limit: number,
) {
  const request = await readGenerateRequest({ base: place.model, adapters: [folder ?? "base"], prompt: "x", isRaw: true });
  const device = chooseDevice(place.device, place.precision);
  const adapter = folder === null ? -1 : 0;
  const { format } = heldWeights(place.precision, device, request.exact);
  const plan = planGeneration(request.spec, device, request.adapters, [{ adapter, prompt: prompt.length, limit }], format);
  await using engine = await openGeneration(plan, { folder: place.model }, request.adapters);
  const ids: number[] = [];
  for await (const { token } of generate(engine, [{ adapter, prompt, limit, seed }], sampling, new Set())) ids.push(token);
  return ids;
}

/** Declares the tests; on each of these numbers of stages. */
export function primitivesAgree(place: PrimitivesPlace, stageCounts: readonly number[]): void {
  let ran: ReturnType<typeof runAll> | null = null;
  const ofRun = () => {
    ran ??= runAll(place);
    return ran;
  };

  describe("training", () => {
    test.each([...stageCounts])(
      "the steps of a run, one by one and together, on %i stages, with samples in between: the same bits",
      async (stages) => {
        await using on = await place.open(NAMES, stages);
        await measureReferences(on);
        const want = await ofRun();
        for (const step of range(STEPS)) {
          if (step === 1) await Promise.all(NAMES.map((name) => trainStep(on, name, step)));
          else for (const name of NAMES) await trainStep(on, name, step);
          await on.sample(NAMES[step]!, [tokens(9)], { maxTokens: 4, n: 3, sampling: { temperature: 1 } });
        }
        for (const name of NAMES) expect(await weightsOf(place, on, name), name).toBe(want.get(name)!);
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
      expect(await weightsOf(place, on, "lora")).toBe(want.get("lora")!);
      await using alone = await place.open(["vera"]);
      expect(await weightsOf(place, on, "vera")).toBe(await weightsOf(place, alone, "vera"));
      for (const step of range(STEPS)) await trainStep(on, "vera", step);
      expect(await weightsOf(place, on, "vera")).toBe(want.get("vera")!);
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
        expect(await weightsOf(place, on, name)).toBe(want.get(name)!);
      },
    );

    test.each(["lora", "dora", "vera", "pissa"])(
      "weights are loaded as they were, with moments and steps anew: %s",
      async (name) => {
        await using on = await place.open([name]);
        await trainStep(on, name, 0);
        const weights = await weightsOf(place, on, name);
        const folder = join(place.root, `weights-${name}`);
        await on.save(name, folder);
        await on.forwardBackward(name, ROWS); // gradients that loading drops
        expect(await on.load(name, folder)).toEqual({ steps: 0 });
        expect(await weightsOf(place, on, name)).toBe(weights);
        await using fresh = await openPrimitives(place.recipe([name], { more: `from = "weights-${name}"` }));
        for (const other of [on, fresh]) await trainStep(other, name, 0);
        expect(await weightsOf(place, fresh, name)).toBe(await weightsOf(place, on, name));
      },
    );
  });

  describe("samples", () => {
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
            expect(ids).toEqual(await generated(place, folder, prompt, sampling, 7 + i, 12));
            expect(end).toBe("length");
          }
          const [base] = (await on.sample(null, [prompt], { maxTokens: 12, seed: 7, sampling }))[0]!;
          expect(base!.ids).toEqual(await generated(place, null, prompt, sampling, 7, 12));
          expect(base!.logProbs).not.toEqual(samples![0]!.logProbs);
        }
      },
    );
  });
}
