// A config.json or weights that say a thing twice, not at all, or against one another are read as transformers 5 reads them.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { prefill } from "../../src/schedule/decode.ts";
import { evaluate } from "../../src/session/evaluation/evaluate.ts";
import { openGeneration } from "../../src/session/generation/open.ts";
import { admit } from "../../src/session/state/slot.ts";
import { BASE_CASES, type BaseCase, logitsOf, writeBaseCase } from "../helpers/base-cases.ts";
import { nextLogits } from "../helpers/generation.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-base-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const device = chooseDevice("cpu", "fp32");

/** The loss of the base with an adapter that is not trained yet, over some stages. */
async function lossOver(stages: number, of: BaseCase, folder: string): Promise<number> {
  const { spec } = readModelFacts(folder, readModelSpec(folder));
  const recipe = goldenRecipe(loadGolden("qwen2"));
  const adapter = { ...recipe.adapters[0]!, initialAdapter: null };
  const all = {
    ...recipe,
    model: { path: folder, precision: "fp32" as const },
    run: { ...recipe.run, stages },
    adapters: [adapter],
  };
  const row = { length: of.ids.length, longest: of.ids.length, targets: of.ids.length - 1 };
  const plan = makePlan(all, spec, [{ train: [row], eval: [] }], Array(stages).fill({ ...device, host: "" }));
  await using bus = await openLocalStages(setupsOf(plan, { folder }));
  await admit(bus, 0, plan.adapters[0]!);
  const sample = { ids: Int32Array.from(of.ids), mask: Uint8Array.from(of.ids, () => 1) };
  const work = { slot: 0, samples: [sample], batchSize: 1, objective: { name: "sft" }, references: null } as const;
  return (await evaluate(bus, plan, work).result).loss;
}

describe.each(BASE_CASES.map((of) => [of.name, of] as const))("%s", (name, of) => {
  const folder = join(root, name);
  writeBaseCase(folder, of);
  const { spec, notices } = readModelFacts(folder, readModelSpec(folder));

  test("the head is the embedding where it is in transformers, and a difference from config.json is reported", () => {
    expect(spec.tiedEmbeddings).toBe(of.tied);
    const told = `${join(folder, "config.json")} ties the output head to the embedding (tie_word_embeddings is true), but the model's files have`;
    expect(notices).toEqual(of.head === "other" ? [expect.stringContaining(told)] : []);
  });

  test("logits", async () => {
    const wishes = range(of.ids.length).map((i) => ({ adapter: -1, prompt: i + 1, limit: 1 }));
    const plan = planGeneration(spec, device, [], wishes, "dense");
    await using generator = await openGeneration(plan, { folder }, []);
    const want = logitsOf(of);
    for (const i of range(of.ids.length)) {
      const [got] = await nextLogits(
        generator,
        prefill([{ adapter: -1, ids: of.ids.slice(0, i + 1), firstRow: 0 }], 1, generator.tile),
      );
      const worst = got!.reduce((most, value, at) => Math.max(most, Math.abs(value - want[i * spec.vocab + at]!)), 0);
      expect(worst, `token ${i}`).toBeLessThan(5e-5); // of logits up to 20
    }
  });

  test("losses, on one stage and on two", async () => {
    const losses = [await lossOver(1, of, folder), await lossOver(2, of, folder)];
    expect(losses[0]).toBe(losses[1]!);
    expect(losses[0]! / of.loss).toBeCloseTo(1, 5);
  });
});

test("the cases differ in what they are about", () => {
  const loss = (name: string) => BASE_CASES.find((of) => of.name === name)!.loss;
  for (const [one, other] of [
    ["rope-all-positions", "rope-outside"],
    ["rope-two-tables", "rope-an-empty-table"],
    ["head-none", "head-other"],
    ["head-none", "head-alone"],
    ["head-other", "head-alone"],
  ] as const)
    expect(Math.abs(loss(one) - loss(other)), `${one} and ${other}`).toBeGreaterThan(1e-2);
});
