// Contrastive instruction tuning on the GPU against the cpu device: losses, cosines and every gradient of one pass, with
// another objective.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Device } from "../../src/device/device.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import type { Preference } from "../../src/objectives/registry.ts";
import { pack, type Segment } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter, writeAdapter } from "../helpers/factors.ts";
import { gpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { adapterOn, LINEARS, randomTokens, tinyStage } from "../helpers/tiny.ts";

const adapters: readonly PoolAdapter[] = [
  { rank: 3, scale: 1.7, targets: LINEARS },
  { rank: 40, scale: 0.4, targets: ["q_proj", "v_proj", "gate_proj", "down_proj"] },
  { rank: 16, scale: 0.9, targets: ["k_proj", "o_proj"] },
];
const OBJECTIVES: readonly Preference[] = [
  { name: "cit", lambda: 0.5, temperature: 0.5, pooling: "last" },
  { name: "orpo", lambda: 0.5 },
  { name: "cit", lambda: 2, temperature: 1, pooling: "mean" },
];
/** Relative differences: rounding of f32 in another order of sums, and of bf16 through a few layers. */
const TOLERANCE = { f32: { loss: 1e-5, gradient: 1e-4 }, bf16: { loss: 2e-2, gradient: 0.1 } };

async function pass(device: Device, spec: ModelSpec) {
  const rows = 1280;
  using stage = await tinyStage(
    device,
    spec,
    adapters.map((of) => adapterOn(spec, of)),
    [5, 6, 7],
    { rows, targets: rows, positions: 200 },
  );
  for (const adapter of adapters.keys()) {
    // Factors that change a linear's output by a part of its size: with larger ones the model itself magnifies every rounding.
    const factors = (await readAdapter(stage, adapter)).map((at) => {
      const rng = new Rng(70 + adapter, at.layer, (LINEARS as readonly string[]).indexOf(at.linear), at.factor === "A" ? 0 : 1);
      const size = at.factor === "A" ? 1 / Math.sqrt(spec.hidden) : 0.2 / Math.sqrt(adapters[adapter]!.rank);
      return { ...at, values: at.values.map(() => size * rng.normal()) };
    });
    await writeAdapter(stage, adapter, factors);
  }
  const rng = new Rng(9);
  const row = (own: number, other: number) => ({
    ...randomTokens(rng, spec.vocab, own),
    other: randomTokens(rng, spec.vocab, other),
  });
  const segments = OBJECTIVES.map(
    (objective, adapter): Segment => ({
      adapter,
      samples: [row(11, 150), row(3, 2), row(40, 41 + adapter)],
      seed: 40 + adapter,
      step: 3,
      dropout: 0.1,
      firstRow: 7 * adapter,
      weight: 0.05,
      preference: { objective, totals: { rows: 5, tokens: 200 }, references: null },
    }),
  );
  const batch = pack(segments, adapters.length, device.rowTile);
  await stage.forward(0, batch);
  const losses = (await stage.backward(0))!;
  const gradients: Float32Array[][] = [];
  for (const adapter of adapters.keys())
    gradients.push(factorsOf(stage, adapter, await stage.pool.read(adapter, "grads")).map(({ values }) => values));
  return { losses: losses.map(({ loss }) => loss), similar: losses.flatMap(({ similar = [] }) => similar), gradients };
}

const distance = (got: ArrayLike<number>, want: ArrayLike<number>): number => {
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    difference += (got[i]! - want[i]!) ** 2;
    size += want[i]! ** 2;
  }
  return Math.sqrt(difference / size);
};

needs("gpu")("a contrast on the GPU", () => {
  for (const [family, spec] of Object.entries(gpuFamilies))
    for (const compute of ["f32", "bf16"] as const)
      test(`${family} in ${compute}: the cpu device's`, async () => {
        const [want, got] = [await pass(new CpuDevice(), spec), await pass(new CudaDevice(compute), spec)];
        const { loss, gradient } = TOLERANCE[compute];
        expect(want.similar.length).toBe(2 * 3 * 3); // of each row of two shares the cosine with each
        expect(distance(got.losses, want.losses), "losses").toBeLessThan(loss);
        expect(distance(got.similar, want.similar), "cosines").toBeLessThan(loss);
        for (const [a, of] of want.gradients.entries())
          for (const [i, wanted] of of.entries())
            expect(distance(got.gradients[a]![i]!, wanted), `gradient ${i} of adapter ${a}`).toBeLessThan(gradient);
      });
});
