// The comparison of contrastive instruction tuning with torch's autograd (tests/golden/cit), for any device: ten steps of an
// adapter, with negatives within each micro-batch.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DeviceKind } from "../../src/base/device-report.ts";
import type { Precision } from "../../src/base/precision.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { makePlan } from "../../src/plan/plan.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { inputLength, longestSequence, type Row, type Tokens } from "../../src/schedule/pack.ts";
import { stepsOf } from "../../src/schedule/steps.ts";
import type { EventOf, SessionEvent } from "../../src/session/events/events.ts";
import { run } from "../../src/session/training/training.ts";
import { type GoldenModel, goldenRecipe, loadGolden } from "./golden.ts";

type FileTokens = { readonly ids: number[]; readonly mask: number[] };
/** run.json as make.py writes it. */
type GoldenRun = {
  readonly model: GoldenModel;
  readonly adapter: string;
  readonly pooling: "last" | "mean";
  readonly temperature: number;
  readonly lambda: number;
  readonly learning_rate: number;
  readonly batch_size: number;
  readonly accumulation: number;
  readonly rows: readonly (readonly [FileTokens, FileTokens])[];
  readonly steps: readonly { loss: number; contrast: number; grad_norm: number; micro_batches: number[][] }[];
};

const FOLDER = join(import.meta.dir, "..", "golden", "cit");
const tokens = ({ ids, mask }: FileTokens): Tokens => ({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) });

const root = mkdtempSync(join(tmpdir(), "mlora-cit-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Relative to the numbers, of the weights to all of them together. */
export type Tolerance = { readonly loss: number; readonly gradNorm: number; readonly weights: number };

export function comparesWithTorch(kind: DeviceKind, precision: Precision, tolerance: Tolerance): void {
  test.each(["last", "mean"])("pooling %s: losses, contrasts, gradient norms and weights are torch's", async (name) => {
    const want: GoldenRun = JSON.parse(readFileSync(join(FOLDER, name, "run.json"), "utf8"));
    const golden = loadGolden(want.model);
    const { recipe } = golden.adapters.find((adapter) => adapter.name === want.adapter)!;
    const adapter: AdapterRecipe = {
      ...recipe,
      objective: { name: "cit", lambda: want.lambda, temperature: want.temperature, pooling: want.pooling },
      optimizer: {
        ...{ name: "adamw", learningRate: want.learning_rate, beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        ...{ weightDecay: 0.01, maxGradNorm: 1 },
      },
      schedule: { name: "constant", warmup: 0, minRatio: 0 },
      batchSize: want.batch_size,
      accumulation: want.accumulation,
    };
    const train = want.rows.map(([own, other]): Row => ({ ...tokens(own), other: tokens(other) }));
    const work = { ...adapter, lengths: train.map(inputLength) };
    expect([...stepsOf(work, 1 << 20)].map(({ microBatches }) => microBatches)).toEqual(
      want.steps.map((step) => step.micro_batches),
    );

    const summary = train.map((row) => ({ length: inputLength(row), longest: longestSequence(row), targets: 1 }));
    const plan = makePlan(
      { ...goldenRecipe(golden, []), adapters: [adapter] },
      readModelSpec(golden.model),
      [{ train: summary, eval: [] }],
      [{ ...chooseDevice(kind, precision), host: "" }],
    );
    const output = join(root, `${name}-${kind}-${precision}`);
    const steps: EventOf<"step">[] = [];
    {
      await using bus = await openLocalStages(setupsOf(plan, { folder: golden.model }));
      const emit = (event: SessionEvent) => void (event.type === "step" && steps.push(event));
      const data = [{ train, eval: [] }];
      const result = await run({ plan, data, bus, output, emit, stop: new AbortController().signal });
      expect(result.adapters.map(({ status }) => status)).toEqual(["done"]);
    }
    const near = (got: number, of: number, limit: number, what: string) =>
      expect(Math.abs(got - of), `${what}: ${got}, torch ${of}`).toBeLessThan(limit * Math.max(1, Math.abs(of)));
    expect(steps.length).toBe(want.steps.length);
    for (const [i, { loss, contrast, grad_norm }] of want.steps.entries()) {
      near(steps[i]!.loss, loss, tolerance.loss, `loss of step ${i + 1}`);
      near(steps[i]!.preference!.contrast!, contrast, tolerance.loss, `contrast of step ${i + 1}`);
      near(steps[i]!.gradNorm, grad_norm, tolerance.gradNorm, `gradient norm of step ${i + 1}`);
    }
    const [ours, theirs] = [join(output, adapter.name), join(FOLDER, name)].map((folder) => readPeftAdapter(folder, plan.spec));
    let [difference, size] = [0, 0];
    for (let layer = 0; layer < plan.spec.layers; layer++)
      for (const linear of theirs!.targets)
        for (const factor of ["A", "B"] as const) {
          const their = theirs!.tensor(layer, linear, factor);
          for (const [j, value] of ours!.tensor(layer, linear, factor).entries()) {
            difference += (value - their[j]!) ** 2;
            size += their[j]! ** 2;
          }
        }
    expect(size).toBeGreaterThan(0);
    expect(Math.sqrt(difference / size)).toBeLessThan(tolerance.weights);
  });
}
