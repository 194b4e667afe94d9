// Against Hugging Face PEFT: three unequal adapters trained together here, each alone there, from the same initial files, over
// the same rows, for ten optimizer steps with accumulation and clipping. The goldens say how far fp32 itself lies from float64.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sum } from "../../src/base/shape.ts";
import { LINEARS } from "../../src/base/spec.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { makePlan, type Plan } from "../../src/plan/plan.ts";
import { evaluate } from "../../src/run/evaluate.ts";
import type { StepEvent } from "../../src/run/events.ts";
import { putFactors, readFactors } from "../../src/run/export.ts";
import { countTargets } from "../../src/run/feed.ts";
import { run } from "../../src/run/run.ts";
import { inputLength, type Tokens } from "../../src/schedule/pack.ts";
import { baseModelWeights } from "../../src/stage/base.ts";
import { openLocalStage } from "../../src/stage/local.ts";
import { GOLDEN_MODELS, type Golden, goldenRecipe, loadGolden } from "../helpers/golden.ts";

/** Relative. PEFT's own fp32 lies up to 2e-7 (losses) and 2.2e-6 (weights) from float64; the issue asks for 1e-5 and 1e-4. */
const LOSS = 1e-6;
const WEIGHTS = 1e-5;

const root = mkdtempSync(join(tmpdir(), "mlora-golden-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const summary = (rows: readonly Tokens[]) => rows.map((row) => ({ length: inputLength(row), targets: countTargets(row) }));

function planOf(golden: Golden): Plan {
  const data = golden.adapters.map(({ rows }) => ({ train: summary(rows), eval: [] }));
  return makePlan(goldenRecipe(golden), readModelSpec(golden.model), data, chooseDevice("cpu"));
}

const openStage = (plan: Plan) => openLocalStage(plan, (device) => baseModelWeights(plan.recipe.model.path, plan.spec, device));

const close = (got: number, want: number, tolerance: number, what: string) => {
  expect(Math.abs(got - want) / Math.abs(want), `${what}: ${got}, PEFT ${want}`).toBeLessThan(tolerance);
};

for (const name of GOLDEN_MODELS)
  describe(`${name}, as PEFT trains it`, () => {
    const golden = loadGolden(name);

    test("losses, gradient norms, rates and final weights", async () => {
      const plan = planOf(golden);
      const output = join(root, name);
      const steps: StepEvent[][] = golden.adapters.map(() => []);
      {
        await using bus = await openStage(plan);
        const quiet = {
          evaluated: () => undefined,
          saved: () => undefined,
          failed: (_: number, message: string) => expect(message).toBe(""),
        };
        const data = golden.adapters.map(({ rows }) => ({ train: rows, eval: [] }));
        const observer = { ...quiet, stepped: (event: StepEvent) => steps[event.adapter]!.push(event) };
        const result = await run({ plan, data, bus, output, observer, stop: new AbortController().signal });
        expect(result.adapters.map(({ status }) => status)).toEqual(["done", "done", "done"]);
      }
      for (const [i, adapter] of golden.adapters.entries()) {
        expect(steps[i]!.length).toBe(adapter.steps.length);
        for (const [s, want] of adapter.steps.entries()) {
          const got = steps[i]![s]!;
          close(got.loss, want.loss, LOSS, `${adapter.name}, loss of step ${s + 1}`);
          close(got.gradNorm, want.gradNorm, 5 * LOSS, `${adapter.name}, gradient norm of step ${s + 1}`);
          expect(got.learningRate).toBeCloseTo(want.learningRate, 9);
        }
        const [ours, theirs] = [
          readPeftAdapter(join(output, adapter.name), plan.spec),
          readPeftAdapter(adapter.final, plan.spec),
        ];
        expect({ rank: ours.rank, alpha: ours.alpha, targets: ours.targets }).toEqual({
          rank: theirs.rank,
          alpha: theirs.alpha,
          targets: theirs.targets,
        });
        let [difference, size] = [0, 0];
        for (let layer = 0; layer < plan.spec.layers; layer++)
          for (const linear of ours.targets)
            for (const factor of ["A", "B"] as const) {
              const want = theirs.tensor(layer, linear, factor);
              for (const [j, value] of ours.tensor(layer, linear, factor).entries()) {
                difference += (value - want[j]!) ** 2;
                size += want[j]! ** 2;
              }
            }
        expect(Math.sqrt(difference / size), `${adapter.name}, weights`).toBeLessThan(WEIGHTS);
      }
    });

    test("an adapter that PEFT wrote has the same losses and hits here, row by row", async () => {
      const plan = planOf(golden);
      await using bus = await openStage(plan);
      for (const [i, adapter] of golden.adapters.entries()) {
        await putFactors(bus, i, readFactors(adapter.final, plan, i));
        for (const [r, row] of adapter.rows.entries()) {
          const got = await evaluate(bus, plan, i, [row]);
          const { lossSum, targets, hits } = adapter.after[r]!;
          close(got.loss * targets, lossSum, LOSS, `${adapter.name}, row ${r}`);
          expect(got.exact).toBe(hits === targets ? 1 : 0);
        }
        const together = await evaluate(bus, plan, i, adapter.rows);
        const all = sum(adapter.after.map(({ lossSum }) => lossSum)) / sum(adapter.after.map(({ targets }) => targets));
        close(together.loss, all, LOSS, `${adapter.name}, packed`);
      }
    });
  });

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
