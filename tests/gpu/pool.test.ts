// Adapters of ranks from 1 to 256 next to each other on a GPU: each learns what it learns alone, takes the memory that the plan
// counts, and gives it back.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { OPTIMIZERS } from "../../src/methods/optimizers.ts";
import { expectSame, type Ground, train } from "../helpers/crowd.ts";
import { gpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { LINEARS, plannedBytes, randomFill, tinySizes, wholeModel } from "../helpers/tiny.ts";

/** Of the crowd's adapters 2 and 5 are DoRAs, 6 is a VeRA, and two in three leave some linears out. */
const RANKS = [4, 8, 16, 32, 64, 65, 128, 256];

needs("gpu")("ranks from 4 to 256 together, bit for bit as alone", () => {
  for (const compute of ["bf16", "f32"] as const)
    for (const family of ["llama", "qwen2", "qwen3"] as const)
      test(`${family} in ${compute}`, async () => {
        const ground: Ground = {
          spec: gpuFamilies[family]!,
          open: () => new CudaDevice(compute),
          passRows: 2048,
          ranks: RANKS,
        };
        const everyone = await train(range(RANKS.length), ground);
        const narrow = await train([0, 1, 2], ground);
        for (const i of range(RANKS.length)) expectSame(everyone.get(i)!, (await train([i], ground)).get(i)!);
        for (const i of [0, 1, 2]) expectSame(everyone.get(i)!, narrow.get(i)!);
      }, 300_000);

  test.each(["int8", "nf4", "fp8", "nf4-fp8"] as const)(
    "over a base in %s",
    async (format) => {
      const spec = { ...gpuFamilies["qwen2"]!, intermediate: format === "nf4-fp8" ? 320 : 272 }; // multiples of 64 and of 16
      const ground: Ground = { spec, open: () => new CudaDevice("bf16"), passRows: 2048, format, ranks: RANKS };
      const everyone = await train(range(RANKS.length), ground);
      for (const i of [1, 2, 6, 7]) expectSame(everyone.get(i)!, (await train([i], ground)).get(i)!);
    },
    300_000,
  );
});

/** No two alike: rank, targets, method, optimizer. */
function randomAdapter(rng: Rng, seed: number): PoolAdapter {
  const rank = [1, 4, 8, 16, 33, 64, 128, 256][rng.below(8)]!;
  const targets = LINEARS.filter(() => rng.below(2) === 0);
  const method = (["lora", "dora", "vera"] as const)[rng.below(3)]!;
  const optimizer = OPTIMIZERS[rng.below(OPTIMIZERS.length)]!;
  return { rank, scale: 1, targets: targets.length > 0 ? targets : ["q_proj"], method, optimizer, projectionSeed: seed };
}

needs("gpu")("memory of the pool on the GPU", () => {
  describe.each(["bf16", "f32"] as const)("in %s", (compute) => {
    test.each(range(30))("mix %i takes what the plan counts, and gives it back", async (mix) => {
      const device = new CudaDevice(compute); // the stage's from here on
      const rng = new Rng(25, mix);
      const spec = Object.values(gpuFamilies)[mix % 5]!;
      const adapters = range(1 + rng.below(12)).map((i) => randomAdapter(rng, 100 * mix + i));
      const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, rows: 1280, targets: 1280 });
      const config = { spec, layerRange: wholeModel(spec), sizes };
      using stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
      const empty = device.allocated;
      for (const [slot, adapter] of adapters.entries()) await stage.admit(slot, { ...adapter, seed: slot, init: "default" });
      const planned = plannedBytes(device, spec, sizes, adapters);
      expect(Math.abs(device.allocated - planned) / planned).toBeLessThan(0.005);
      for (const slot of adapters.keys()) stage.pool.release(slot);
      expect(device.allocated).toBe(empty);
    });

    test("500 adapters that join and leave do not grow it", async () => {
      const device = new CudaDevice(compute);
      const rng = new Rng(26);
      const spec = gpuFamilies["llama"]!;
      const crowd = range(500).map((i) => randomAdapter(rng, i));
      const sizes = { ...tinySizes(device, spec, crowd.slice(0, 8), { layers: spec.layers }), slots: 8 };
      const config = { spec, layerRange: wholeModel(spec), sizes };
      using stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
      const empty = device.allocated;
      for (const adapter of crowd) await stage.admit(rng.below(8), { ...adapter, seed: 1, init: "default" });
      for (const slot of range(8)) stage.pool.release(slot);
      expect(device.allocated).toBe(empty);
    }, 300_000);
  });
});
