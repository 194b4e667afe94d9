// `bun method-trial.ts METHOD OTHER`: one step of two adapters with the same tensors, rows and masks on a tiny model, of a new
// method and of one that trains the same tensors and more. Prints by tensor how gradients and values after the step compare.

import { Rng } from "../../src/base/rng.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { LINEARS } from "../../src/families/linears.ts";
import type { PeftMethod } from "../../src/methods/registry.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter } from "./factors.ts";
import { randomTokens, tinySpec, tinyStage } from "./tiny.ts";

const methods = process.argv.slice(2, 4) as PeftMethod[];
const spec = tinySpec();
const adapters = methods.map((method) => ({ rank: 3, scale: 1.7, targets: LINEARS, method }));
using stage = await tinyStage(new CpuDevice(2), spec, adapters, [5, 5]);
const samples = [11, 18].map((length) => randomTokens(new Rng(9), spec.vocab, length));
const rows = { samples, seed: 4, step: 3, dropout: 0.1, firstRow: 7, weight: 0.05 };
const before = await readAdapter(stage, 0);
await stage.forward(
  0,
  pack(
    [0, 1].map((adapter) => ({ ...rows, adapter })),
    2,
    stage.device.rowTile,
  ),
);
await stage.backward(0);
const gradients = await Promise.all([0, 1].map(async (slot) => factorsOf(stage, slot, await stage.pool.read(slot, "grads"))));
const squares = (await stage.pool.gradSquares([0]))[0]!.reduce((a, b) => a + b, 0);
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
console.log(JSON.stringify({ kinds, gradNorm: Math.sqrt(squares) }));
