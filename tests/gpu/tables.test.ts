// Adapters of embedding and head on the GPU: the gradients and answers of the cpu device, over many tiles, and the same bits
// wherever chunks of targets end.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Device } from "../../src/device/device.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, writeAdapter } from "../helpers/factors.ts";
import { GREEDY, generated, tinyGenerator } from "../helpers/generation.ts";
import { gpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { randomFactors, randomTokens, tinyStage } from "../helpers/tiny.ts";

const spec = gpuFamilies["qwen2"]!;
const tokens = { tokens: range(40).map((i) => (i * 7) % spec.vocab) };
const ADAPTERS: readonly PoolAdapter[] = [
  { rank: 3, scale: 0.7, targets: ["q_proj"], tables: { embedding: { rank: 5, scale: 0.9 }, head: { rank: 20, scale: 0.3 } } },
  { rank: 2, scale: 0.4, targets: ["v_proj"], tables: { embedding: tokens, head: tokens } },
  { rank: 4, scale: 0.8, targets: ["up_proj"] },
  { rank: 1, scale: 0, targets: [], tables: { head: { rank: 64, scale: 0.2 } } },
];

/** Losses, and gradients of all tensors, of a batch of many tiles for each of these adapters. */
async function gradientsOf(device: Device, who: readonly number[], chunkTiles: number) {
  const adapters = who.map((i) => ADAPTERS[i]!);
  const rows = 4096;
  const sizes = { rows, targets: rows, chunk: chunkTiles * device.rowTile, positions: 256 };
  using stage = await tinyStage(device, spec, adapters, [], sizes);
  for (const [slot, i] of who.entries()) {
    const factors = await randomFactors(stage, slot, 40 + i);
    await writeAdapter(
      stage,
      slot,
      factors.map((at) => (at.factor === "rows" ? { ...at, values: at.values.map((_, j) => 0.3 * Math.sin(j)) } : at)),
    );
  }
  const segments = who.map((i, adapter) => {
    const rng = new Rng(90 + i);
    const samples = range(4).map(() => randomTokens(rng, spec.vocab, 180 + rng.below(20)));
    return { adapter, samples, seed: i, step: 2, dropout: 0.1, firstRow: 3, weight: 0.01 };
  });
  const batch = pack(segments, who.length, device.rowTile);
  await stage.forward(0, batch);
  const losses = (await stage.backward(0))!;
  const all = await Promise.all(who.map((_, slot) => stage.pool.read(slot, "grads")));
  return new Map(
    who.map((i, slot) => {
      const own = losses.filter((_, at) => batch.sequences[at]!.adapter === slot).map(({ loss }) => loss);
      return [i, { losses: own, factors: factorsOf(stage, slot, all[slot]!) }];
    }),
  );
}

needs("gpu")("embedding and head", () => {
  test("gradients are those of the cpu device", async () => {
    const [got, want] = [
      await gradientsOf(new CudaDevice("f32"), range(4), 2),
      await gradientsOf(new CpuDevice(4), range(4), 5),
    ];
    for (const [i, { losses, factors }] of want) {
      const ours = got.get(i)!;
      for (const [s, loss] of losses.entries()) expect(Math.abs(ours.losses[s]! / loss - 1)).toBeLessThan(1e-5);
      for (const [f, { values, ...at }] of factors.entries()) {
        const other = ours.factors[f]!.values;
        const difference = Math.hypot(...values.map((value, j) => value - other[j]!));
        const size = Math.hypot(...values);
        const where = `${at.layer}.${at.linear}.${at.factor} of adapter ${i}`;
        if (at.linear === "embedding" && at.factor === "rows")
          expect(size, where).toBe(0); // in the head's
        else expect(difference / size, where).toBeLessThan(1e-4);
      }
    }
  });

  describe.each(["bf16", "f32"] as const)("in %s", (compute) => {
    test("the same bits alone and among others, wherever chunks end", async () => {
      const everyone = await gradientsOf(new CudaDevice(compute), range(4), 1);
      const others = await gradientsOf(new CudaDevice(compute), [3, 1, 0], 7);
      for (const i of [0, 1, 3]) {
        const alone = (await gradientsOf(new CudaDevice(compute), [i], 4)).get(i)!;
        expect(everyone.get(i)).toEqual(alone);
        expect(others.get(i)).toEqual(alone);
      }
    });
  });

  test("answers are those of the cpu device, token for token", async () => {
    const wanted = range(4).map((adapter) => ({
      adapter,
      prompt: range(9 + adapter).map((i) => (5 * i + 3) % spec.vocab),
      limit: 12,
      seed: 1,
    }));
    const [here, there] = await Promise.all(
      [new CudaDevice("f32"), new CpuDevice(4)].map(async (device) => {
        using generator = await tinyGenerator(device, spec, {}, ADAPTERS);
        return await generated(generator, wanted, GREEDY);
      }),
    );
    expect(here).toEqual(there!);
  });
});
