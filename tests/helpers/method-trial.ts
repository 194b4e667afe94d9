// `bun method-trial.ts METHOD OTHER`: one step of two adapters with the same tensors, rows and masks on a tiny model, of a new
// method and of one that trains the same tensors and more. Prints by tensor how gradients and values after the step compare.

import { Rng } from "../../src/base/rng.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { PeftMethod } from "../../src/methods/registry.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter, writeAdapter } from "./factors.ts";
import { LINEARS, randomTokens, tinySpec, tinyStage } from "./tiny.ts";

const methods = process.argv.slice(2, 4) as PeftMethod[];
const spec = tinySpec();
const adapters = methods.map((method) => ({ rank: 3, scale: 1.7, targets: LINEARS, method }));
using stage = await tinyStage(new CpuDevice(2), spec, adapters, [5, 5]);
const samples = [11, 18].map((length) => randomTokens(new Rng(9), spec.vocab, length));
const rows = { samples, seed: 4, step: 3, dropout: 0.1, firstRow: 7, weight: 0.05 };
const batch = pack(
  [0, 1].map((adapter) => ({ ...rows, adapter })),
  2,
  stage.device.rowTile,
);
const before = await readAdapter(stage, 0);
await stage.forward(0, batch);
await stage.backward(0);
const gradients = await Promise.all([0, 1].map(async (slot) => factorsOf(stage, slot, await stage.pool.read(slot, "grads"))));
const squares = (await stage.pool.gradSquares([0]))[0]!.reduce((a, b) => a + b, 0);
const ofNew = (losses: readonly { readonly loss: number }[]) =>
  losses.slice(0, samples.length).reduce((a, { loss }) => a + loss, 0);
const lossOf = async () => rows.weight * ofNew((await stage.evaluate(batch))!);
const errors: number[] = [];
for (const [i, at] of before.entries()) {
  const gradient = gradients[0]![i]!.values;
  if (gradient.every((value) => value === 0)) continue;
  const rng = new Rng(i, 77);
  const direction = Float32Array.from(gradient, () => 0.3 * rng.normal());
  const step = gradient.length < 100 ? 0.03 : 0.004;
  const lossAt = async (moved: number): Promise<number> => {
    await writeAdapter(stage, 0, [{ ...at, values: at.values.map((value, j) => value + moved * step * direction[j]!) }]);
    return lossOf();
  };
  const [near, far] = [(await lossAt(1)) - (await lossAt(-1)), (await lossAt(2)) - (await lossAt(-2))];
  await writeAdapter(stage, 0, [at]);
  const along = gradient.reduce((total, g, j) => total + g * direction[j]!, 0);
  errors.push(Math.abs(along - (8 * near - far) / (12 * step)) / (Math.hypot(...gradient) * Math.hypot(...direction)));
}
const rates = { learningRate: 1e-2, ratio: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1, coefficient: 1 };
await stage.step([0, 1].map((adapter) => ({ adapter, t: 1, ...rates })));
const after = [await readAdapter(stage, 0), await readAdapter(stage, 1)] as const;

const same = (a: Float32Array, b: Float32Array) => a.every((value, i) => Object.is(value, b[i]));
const found = before.map((at, i) => ({
  factor: at.factor,
  gradient: gradients[0]![i]!.values.every((value) => value === 0)
    ? "zero"
    : same(gradients[0]![i]!.values, gradients[1]![i]!.values)
      ? "the other's"
      : "its own",
  after: same(after[0][i]!.values, at.values)
    ? "unchanged"
    : same(after[0][i]!.values, after[1][i]!.values)
      ? "the other's"
      : "its own",
}));
const kinds = [...new Set(found.map((of) => JSON.stringify(of)))].sort().map((text) => JSON.parse(text) as object);
console.log(JSON.stringify({ kinds, gradNorm: Math.sqrt(squares), worst: Math.max(...errors) }));
