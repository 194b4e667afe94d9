// Against Hugging Face PEFT on the cpu device. The goldens say how far fp32 itself lies from float64.

import { expect, test } from "bun:test";
import { GOLDEN_MODELS, loadGolden } from "../helpers/golden.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { LINEARS } from "../helpers/tiny.ts";

// Relative. PEFT's own fp32 lies up to 2e-7 (losses) and 2.2e-6 (weights) from float64; the issue asks for 1e-5 and 1e-4.
comparesWithPeft("cpu", "fp32", { loss: 1e-6, gradNorm: 5e-6, weights: 1e-5 }, true);

test("the goldens hold all that the issue names: unequal ranks and targets, clipping, accumulation, uneven ends", () => {
  const adapters = GOLDEN_MODELS.flatMap((name) => loadGolden(name).adapters);
  expect(new Set(adapters.map(({ recipe }) => recipe.rank)).size).toBeGreaterThan(2);
  expect(new Set(adapters.flatMap(({ recipe }) => recipe.targets)).size).toBe(LINEARS.length);
  expect(adapters.some(({ recipe }) => recipe.accumulation > 1)).toBe(true);
  expect(adapters.some(({ recipe, rows }) => rows.length % (recipe.batchSize * recipe.accumulation) !== 0)).toBe(true);
  expect(adapters.some(({ recipe, rows }) => rows.length < recipe.batchSize * recipe.accumulation)).toBe(true);
  const clips = adapters.some(({ recipe, steps }) =>
    steps.some((step) => step.gradNorm > (recipe.optimizer.maxGradNorm ?? Number.POSITIVE_INFINITY)),
  );
  expect(clips).toBe(true);
});
