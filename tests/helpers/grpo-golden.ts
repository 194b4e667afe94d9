// What TRL's GRPOTrainer came to (tests/golden/grpo), and the same from logits on a device.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { bytesOf, type DType } from "../../src/base/dtype.ts";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import type { AdvantageSettings } from "../../src/objectives/advantages.ts";
import { completionLoss, completionScales, type GroupPolicy } from "../../src/objectives/group-policy.ts";
import { xent } from "../../src/ops/xent.ts";

type Settings = Omit<AdvantageSettings, "generations"> & {
  readonly loss: "dapo" | "grpo" | "dr_grpo" | "cispo" | "luspo";
  readonly beta: number;
  readonly epsilon: number;
  readonly epsilonHigh: number | null;
  readonly delta: number | null;
  readonly importanceSamplingLevel: "token" | "sequence";
  readonly biasCorrection: boolean;
  readonly maskTruncated: boolean;
};
type Case = {
  readonly settings: Settings;
  readonly ended: readonly boolean[];
  readonly rewards: readonly (readonly (number | null)[])[];
  readonly now: readonly number[][];
  readonly old: readonly number[][] | null;
  readonly reference: readonly number[][] | null;
  readonly advantages: readonly number[];
  readonly mask: readonly number[][];
  readonly loss: number;
  readonly slopes: readonly number[][];
  readonly metrics: Readonly<Record<string, number>>;
};
/** Logits of each token of the completions one after another, and slopes by them. */
type Tempered = Pick<Case, "now" | "old" | "reference" | "advantages" | "loss" | "slopes"> & {
  readonly settings: Settings & { readonly temperature: number };
  readonly targets: readonly number[];
};

/** grpo.json as tests/golden/grpo/make.py writes it. */
export const GOLDEN: {
  readonly generations: number;
  readonly limit: number;
  readonly cases: readonly Case[];
  readonly lengths: readonly number[];
  readonly tempered: readonly Tempered[];
} = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "grpo", "grpo.json"), "utf8"));

export const policyOf = ({ loss, importanceSamplingLevel: level, epsilon, ...of }: Settings): GroupPolicy => {
  const high = of.epsilonHigh ?? epsilon;
  return {
    ...{ name: "grpo", level, low: 1 - epsilon, delta: of.delta, beta: of.beta, isCorrected: of.biasCorrection },
    ...(loss === "cispo" ? { form: "weighted", high } : { form: "clipped", high: 1 + high }),
  };
};

/** Columns of the logits in memory: kernels take multiples of 8. */
const COLUMNS = 16;

/** The kernel's log-probabilities of targets, and, with their weights, the slopes by the logits. */
async function through(device: Device, { targets, settings }: Tempered, logits: readonly number[][], by: Float32Array | null) {
  const [rows, classes] = [logits.length, logits[0]!.length];
  const take = (dtype: DType, values: Float32Array | Int32Array, ...shape: number[]): Tensor => {
    const to = { ptr: device.allocate(sizeOf(shape) * bytesOf(dtype), "a test"), dtype, shape };
    device.write(to, values);
    return to;
  };
  const wide = new Float32Array(rows * COLUMNS).fill(Number.NaN);
  for (const [i, of] of logits.entries()) wide.set(of, i * COLUMNS);
  const [z, loss] = [take("f32", wide, rows, COLUMNS), take("f32", new Float32Array(rows), rows)];
  xent(device, {
    ...{ logits: z, classes, targets: take("i32", Int32Array.from(targets), rows), loss },
    weights: take("f32", by ?? new Float32Array(rows), rows),
    sharpness: take("f32", new Float32Array(rows).fill(1 / settings.temperature), rows),
    ...{ isCorrect: take("i32", new Int32Array(rows), rows), grad: by ? 1 : 0, scale: 1, cap: 0 },
  });
  const read = async (from: Tensor) => new Float32Array((await device.read(from)).buffer);
  const [found, slopes] = [await read(loss), await read(z)];
  return { logProbs: found.map((value) => -value), slopes };
}

/** Declares that losses, and slopes by logits, are TRL's at its temperatures. */
export function temperedLikeTrl(open: () => Device): void {
  test.each(GOLDEN.tempered.map((golden) => [golden.settings.temperature, golden.settings.loss, golden] as const))(
    "at a temperature of %d, %s has TRL's loss and its slopes by the logits",
    async (_, __, golden) => {
      using device = open();
      const { settings, advantages } = golden;
      const of = async (logits: readonly number[][] | null) => logits && (await through(device, golden, logits, null)).logProbs;
      const [now, old, reference] = [await of(golden.now), await of(golden.old), await of(golden.reference)];
      const scales = completionScales(settings.loss, GOLDEN.lengths, GOLDEN.limit);
      let at = 0;
      const targets = GOLDEN.lengths.flatMap((length, i) => {
        const own = (values: Float32Array | null) => values?.subarray(at, at + length) ?? null;
        const given = { now: own(now)!, old: own(old), reference: own(reference) };
        at += length;
        return completionLoss(policyOf(settings), { ...given, advantage: advantages[i]!, scale: scales[i]! }).targets;
      });
      expect(Math.abs(sum(targets.map(({ loss }) => loss)) - golden.loss)).toBeLessThan(1e-6);
      const weights = Float32Array.from(targets, ({ weight }) => weight);
      const { slopes } = await through(device, golden, golden.now, weights);
      for (const [i, want] of golden.slopes.entries())
        for (const column of range(want.length))
          expect(Math.abs(slopes[i * COLUMNS + column]! - want[column]!)).toBeLessThan(1e-6);
    },
  );
}
