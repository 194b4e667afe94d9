// The comparison with Hugging Face PEFT, for any device: three unequal adapters trained together here, each alone there, from
// the same initial files, over the same rows, for ten optimizer steps with accumulation and clipping.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DeviceKind } from "../../src/base/device-report.ts";
import type { Precision } from "../../src/base/precision.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { matrix, multiply } from "../../src/device/algebra.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { partOfWeights } from "../../src/engine/pool/initialise.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { readPeftAdapter, type SavedAdapter } from "../../src/files/peft.ts";
import { type Init, isSvdInit } from "../../src/methods/init.ts";
import { tensorsIn } from "../../src/methods/layout.ts";
import { rankAt, scaleAt } from "../../src/methods/placement.ts";
import { makePlan, type Plan } from "../../src/plan/plan.ts";
import { inputLength, type Tokens } from "../../src/schedule/pack.ts";
import { evaluate } from "../../src/session/evaluation/evaluate.ts";
import type { EventOf, SessionEvent } from "../../src/session/events/events.ts";
import { begin } from "../../src/session/state/initialise.ts";
import { putSaved } from "../../src/session/state/slot.ts";
import { run } from "../../src/session/training/training.ts";
import { GOLDEN_MODELS, type GoldenModel, goldenRecipe, loadGolden, type TrainedGolden } from "./golden.ts";
import { LINEARS } from "./tiny.ts";

/** A model, and adapters that PEFT trained on it. */
export type Trained = { readonly name: string; readonly model: string; readonly adapters: readonly TrainedGolden[] };

/** Relative differences that are allowed. */
export type Tolerance = { readonly loss: number; readonly gradNorm: number; readonly weights: number };

const root = mkdtempSync(join(tmpdir(), "mlora-golden-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const summary = (rows: readonly Tokens[]) =>
  rows.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: 1 }));

function planOf(golden: Trained, kind: DeviceKind, precision: Precision): Plan {
  const data = golden.adapters.map(({ rows }) => ({ train: summary(rows), eval: [] }));
  return makePlan(goldenRecipe(golden), readModelFacts(golden.model, readModelSpec(golden.model)).spec, data, [
    { ...chooseDevice(kind, precision), host: "" },
  ]);
}

const workOf = (plan: Plan, slot: number, samples: readonly Tokens[]) => {
  const { batchSize } = plan.adapters[slot]!.recipe;
  return { slot, samples, batchSize, objective: { name: "sft" }, references: null } as const;
};

const openStage = (plan: Plan) => openLocalStages(setupsOf(plan, { folder: plan.recipe.model.path }));

const close = (got: number, want: number, tolerance: number, what: string) => {
  expect(Math.abs(got - want) / Math.abs(want), `${what}: ${got}, PEFT ${want}`).toBeLessThan(tolerance);
};

/**
 * How far what ours adds to the weights is from what theirs adds, less what it began as, which PEFT took off them, where that
 * is not in it.
 */
function changeOff(spec: ModelSpec, ours: SavedAdapter, theirs: SavedAdapter, begun: SavedAdapter | null): number {
  const added = (of: SavedAdapter, layer: number, linear: Linear) => {
    const shape = linearShape(spec, linear);
    const [a, b] = [of.tensor(layer, linear, "A"), of.tensor(layer, linear, "B")].map((values) => Float64Array.from(values));
    return multiply(matrix(shape.out, of.rank, b), matrix(of.rank, shape.in, a)).values.map((value) => value * of.scale);
  };
  let [difference, size] = [0, 0];
  for (let layer = 0; layer < spec.layers; layer++)
    for (const linear of ours.targets) {
      const [got, last] = [added(ours, layer, linear), added(theirs, layer, linear)];
      const first = begun ? added(begun, layer, linear) : new Float64Array(got.length);
      for (const [i, value] of got.entries()) {
        difference += (value - (last[i]! - first[i]!)) ** 2;
        size += (last[i]! - first[i]!) ** 2;
      }
    }
  return Math.sqrt(difference / size);
}

/**
 * The factors in a golden's folder. One that begins as a part of the weight is refused as an adapter, for PEFT takes that off
 * the weight.
 */
function readFactorsOf(folder: string, spec: ModelSpec): SavedAdapter {
  const copy = mkdtempSync(join(tmpdir(), "mlora-golden-"));
  try {
    cpSync(folder, copy, { recursive: true });
    const path = join(copy, "adapter_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    writeFileSync(path, JSON.stringify({ ...config, init_lora_weights: true }));
    return readPeftAdapter(copy, spec);
  } finally {
    rmSync(copy, { recursive: true });
  }
}

/**
 * Adapters that begin as a part of the weight do so here, and also out of PEFT's files, which are of the weights less that
 * part.
 */
function begunFrom(golden: Trained): readonly (Trained & { readonly what: string; readonly fromFiles: boolean })[] {
  if (golden.name !== "principal") return [{ ...golden, what: golden.name, fromFiles: false }];
  const continued = golden.adapters.map((of) => ({ ...of, recipe: { ...of.recipe, initialAdapter: of.initial } }));
  return [
    { ...golden, what: golden.name, fromFiles: false },
    { ...golden, adapters: continued, what: `${golden.name} from PEFT's files`, fromFiles: true },
  ];
}

/** Declares the tests of one kind of device; `exact` says whether greedy decoding must give what PEFT's gives, row by row. */
export function comparesWithPeft(
  kind: DeviceKind,
  precision: Precision,
  tolerance: Tolerance,
  exact: boolean,
  goldens: readonly (GoldenModel | Trained)[] = GOLDEN_MODELS,
): void {
  for (const golden of goldens.flatMap((of) => begunFrom(typeof of === "string" ? loadGolden(of) : of)))
    describe(`${golden.what}, as PEFT trains it`, () => {
      const { name } = golden;
      // PEFT decomposes the weights in float32, so that its files and what is taken off here differ by its rounding, over the
      // distance of the singular values on both sides of the rank.
      const asPeftRounds = Math.max(tolerance.loss, 1e-5);
      const loss = golden.fromFiles ? asPeftRounds : tolerance.loss;
      const gradNorm = golden.fromFiles ? Math.max(tolerance.gradNorm, 3e-5) : tolerance.gradNorm;

      test("losses, gradient norms, rates and final weights", async () => {
        const plan = planOf(golden, kind, precision);
        const output = join(root, `${name}-${kind}-${precision}`);
        const steps: EventOf<"step">[][] = golden.adapters.map(() => []);
        {
          await using bus = await openStage(plan);
          const data = golden.adapters.map(({ rows }) => ({ train: rows, eval: [] }));
          const emit = (event: SessionEvent) => {
            if (event.type === "failed") expect(event.message).toBe("");
            if (event.type === "step") steps[event.index]!.push(event);
          };
          const result = await run({
            plan,
            data,
            bus,
            output,
            emit,
            stop: new AbortController().signal,
          });
          expect(result.adapters.map(({ status }) => status)).toEqual(golden.adapters.map(() => "done"));
        }
        for (const [i, adapter] of golden.adapters.entries()) {
          expect(steps[i]!.length).toBe(adapter.steps.length);
          for (const [s, want] of adapter.steps.entries()) {
            const got = steps[i]![s]!;
            close(got.loss, want.loss, loss, `${adapter.name}, loss of step ${s + 1}`);
            close(got.gradNorm, want.gradNorm, gradNorm, `${adapter.name}, gradient norm of step ${s + 1}`);
            expect(got.learningRate).toBeCloseTo(want.learningRate, 9);
          }
          const [ours, theirs] = [
            readPeftAdapter(join(output, adapter.name), plan.spec),
            readFactorsOf(adapter.final, plan.spec),
          ];
          const begins = isSvdInit(adapter.recipe.init);
          expect(ours.targets).toEqual(theirs.targets);
          for (const layer of range(plan.spec.layers))
            for (const linear of LINEARS) {
              expect(rankAt(ours, layer, linear)).toBe((begins ? 2 : 1) * rankAt(theirs, layer, linear));
              expect(scaleAt(ours, layer, linear)).toBeCloseTo(scaleAt(theirs, layer, linear), 12);
            }
          if (begins) {
            const change = golden.fromFiles
              ? changeOff(
                  plan.spec,
                  ours,
                  readPeftAdapter(adapter.final, plan.spec, partOfWeights(golden.model, plan.spec)),
                  null,
                )
              : changeOff(plan.spec, ours, theirs, readFactorsOf(adapter.initial, plan.spec));
            // a difference of two rounded products
            expect(change).toBeLessThan(Math.max(3 * tolerance.weights, golden.fromFiles ? 1e-4 : 0));
            continue;
          }
          let [difference, size] = [0, 0];
          expect(ours.tables).toEqual(theirs.tables);
          for (const { layer, linear, factor } of tensorsIn(plan.spec, { from: 0, to: plan.spec.layers }, ours)) {
            const want = theirs.tensor(layer, linear, factor);
            for (const [j, value] of ours.tensor(layer, linear, factor).entries()) {
              difference += (value - want[j]!) ** 2;
              size += want[j]! ** 2;
            }
          }
          expect(Math.sqrt(difference / size), `${adapter.name}, weights`).toBeLessThan(tolerance.weights);
        }
      });

      test("an adapter that PEFT wrote has the same losses and hits here, row by row", async () => {
        const plan = planOf(golden, kind, precision);
        const ofFile = name === "principal" ? asPeftRounds : tolerance.loss;
        await using bus = await openStage(plan);
        for (const [i, adapter] of golden.adapters.entries()) {
          const own = plan.adapters[i]!;
          const of = { bus, plan, adapter: own, slot: i };
          const fresh = (init: Init) => begin(of, () => undefined, { init });
          await putSaved(of, adapter.final, fresh);
          for (const [r, row] of adapter.rows.entries()) {
            const got = await evaluate(bus, plan, workOf(plan, i, [row])).result;
            const { lossSum, targets, correct } = adapter.after[r]!;
            close(got.loss * targets, lossSum, ofFile, `${adapter.name}, row ${r}`);
            if (exact) expect(got.exact).toBe(correct === targets ? 1 : 0);
          }
          const together = await evaluate(bus, plan, workOf(plan, i, adapter.rows)).result;
          const all = sum(adapter.after.map(({ lossSum }) => lossSum)) / sum(adapter.after.map(({ targets }) => targets));
          close(together.loss, all, ofFile, `${adapter.name}, packed`);
        }
      });
    });
}
