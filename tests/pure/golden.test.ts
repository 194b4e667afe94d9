// What can be held against PEFT's goldens without a device: which rows make a step, the rates, and the files themselves.

import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { linearShape } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { clipCoefficient } from "../../src/schedule/clip.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import { rateFactor } from "../../src/schedule/rate.ts";
import { stepsOf, type Work } from "../../src/schedule/steps.ts";
import { GOLDEN_MODELS, type GoldenAdapter, loadGolden } from "../helpers/golden.ts";
import { LINEARS } from "../helpers/tiny.ts";

const workOf = ({ recipe, rows }: GoldenAdapter): Work => ({ ...recipe, lengths: rows.map(inputLength) });

describe.each([...GOLDEN_MODELS])("goldens of %s", (name) => {
  const golden = loadGolden(name);
  const spec = readModelSpec(golden.model);

  test("the model is of the family, and every tensor is there", () => {
    expect(spec.family).toBe(name);
    using files = openBaseModel(golden.model, spec);
    for (const [tensor, shape] of tensorShapes(spec)) expect(files.tensor(tensor).shape).toEqual([...shape]);
    expect(existsSync(`${golden.model}/model.safetensors`)).toBe(name !== "llama"); // which is in two shards
  });

  test.each(golden.adapters.map((adapter) => [adapter.name, adapter] as const))(
    "%s: the same rows make each step",
    (_, adapter) => {
      const ours = [...stepsOf(workOf(adapter), 1 << 20)].map(({ microBatches }) => microBatches);
      const inOrder = (microBatches: readonly (readonly number[])[]) => microBatches.flat().sort((a, b) => a - b);
      expect(ours.map(inOrder)).toEqual(adapter.steps.map(({ microBatches }) => inOrder(microBatches)));
      expect(ours.map(({ length }) => length)).toEqual(adapter.steps.map(({ microBatches }) => microBatches.length));
    },
  );

  test.each(golden.adapters.map((adapter) => [adapter.name, adapter] as const))(
    "%s: each step has transformers' rate",
    (_, { recipe, steps }) => {
      for (const [i, { learningRate }] of steps.entries()) {
        const ours = recipe.optimizer.learningRate * rateFactor(recipe.schedule, i, steps.length);
        expect(Math.abs(ours - learningRate)).toBeLessThanOrEqual(1e-15); // the same formula in the same order, in doubles
      }
    },
  );

  test.each(golden.adapters.map((adapter) => [adapter.name, adapter] as const))(
    "%s: adapters and gradients are whole",
    (_, adapter) => {
      for (const folder of [adapter.initial, adapter.final]) {
        const { rank, alpha, rslora, targets } = readPeftAdapter(folder, spec);
        const { recipe } = adapter;
        expect({ rank, alpha, rslora, targets }).toEqual({
          rank: recipe.rank,
          alpha: recipe.alpha,
          rslora: recipe.rslora,
          targets: LINEARS.filter((linear) => recipe.targets.includes(linear)),
        });
        for (const linear of targets)
          for (let layer = 0; layer < spec.layers; layer++) {
            const { in: width, out } = linearShape(spec, linear);
            expect(adapter.gradients(layer, linear, "A").length).toBe(rank * width);
            expect(adapter.gradients(layer, linear, "B").length).toBe(out * rank);
          }
      }
      expect(adapter.logits.length).toBe(golden.probe.length * spec.vocab);
    },
  );

  test("together they have what a trainer gets wrong: an uneven last batch, too few rows, clipping now and then", () => {
    const sizes = golden.adapters.map(({ steps }) => steps.map(({ microBatches }) => microBatches.flat().length));
    expect(sizes.some((rows) => rows.some((n, i) => i > 0 && n < rows[i - 1]! && (rows[i + 1] ?? 0) > n))).toBe(true);
    expect(golden.adapters.some(({ recipe, rows }) => rows.length < recipe.batchSize)).toBe(true);
    const clipped = golden.adapters.map(({ recipe, steps }) =>
      steps.map(({ gradNorm }) => clipCoefficient(gradNorm, recipe.optimizer.maxGradNorm) < 1),
    );
    expect(clipped.some((steps) => steps.every(Boolean))).toBe(true);
    expect(clipped.some((steps) => !steps.some(Boolean))).toBe(true);
    expect(clipped.some((steps) => steps.some(Boolean) && !steps.every(Boolean))).toBe(true);
  });

  test("fp32 itself loses at most a tenth of what the engine's tests allow", () => {
    for (const { spread, steps } of golden.adapters) {
      for (const { loss, loss64 } of steps) expect(Math.abs(loss - loss64) / loss64).toBeLessThanOrEqual(1e-6);
      for (const { losses, weights } of Object.values(spread)) {
        expect(losses).toBeLessThanOrEqual(1e-6);
        expect(weights).toBeLessThanOrEqual(1e-5);
      }
    }
  });
});
