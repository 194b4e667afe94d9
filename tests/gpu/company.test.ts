// The promise on the GPU: an adapter learns the same alone, with 3 and with 31 others, and twice in a row, bit for bit.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import { crowdTables, expectSame, type Ground, train } from "../helpers/crowd.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("other adapters change nothing on the GPU", () => {
  test.each(["int8", "nf4", "fp8", "nf4-fp8"] as const)("over a base in %s", async (format) => {
    const spec = { ...gpuFamilies["qwen2"]!, intermediate: format === "nf4-fp8" ? 320 : 272 }; // multiples of 64 and of 16
    const ground: Ground = { spec, open: () => new CudaDevice("bf16"), passRows: 2048, format };
    const everyone = await train(range(12), ground);
    const staged = await train([1, 2, 5], ground, [1]);
    for (const i of [1, 2, 5]) {
      const alone = (await train([i], ground)).get(i)!;
      expectSame(everyone.get(i)!, alone);
      expectSame(staged.get(i)!, alone);
    }
  });

  for (const compute of ["bf16", "f32"] as const)
    for (const family of ["llama", "qwen2"])
      test(`adapters of embedding and head on ${family} in ${compute}, over chunks and two stages`, async () => {
        const spec = gpuFamilies[family]!;
        const ground: Ground = { spec, open: () => new CudaDevice(compute), passRows: 2048, tables: crowdTables };
        const everyone = await train(range(16), ground);
        const staged = await train([0, 1, 2, 3, 7], { ...ground, chunkTiles: 3 }, [1]);
        for (const i of [0, 1, 3, 7]) {
          const alone = (await train([i], { ...ground, chunkTiles: 2 })).get(i)!;
          expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
          expectSame(everyone.get(i)!, alone);
          expectSame(staged.get(i)!, alone);
        }
      });

  for (const compute of ["bf16", "f32"] as const)
    test.each(["mixtral", "gptOss", "qwen3moe"])(
      `adapters in the experts of %s in ${compute}, over two stages, too`,
      async (family) => {
        const ground: Ground = {
          spec: sparseGpuFamilies[family]!,
          open: () => new CudaDevice(compute),
          passRows: 2048,
          isInExperts: true,
        };
        const everyone = await train(range(32), ground);
        const eight = await train([7, 3, 5, 0, 2, 6, 1, 4], ground);
        const staged = await train(range(8), ground, [1]);
        for (const i of range(4)) {
          const alone = (await train([i], ground)).get(i)!;
          expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
          for (const others of [everyone, eight, staged]) expectSame(others.get(i)!, alone);
        }
      },
    );

  for (const compute of ["bf16", "f32"] as const)
    for (const [family, spec] of Object.entries({ ...gpuFamilies, ...sparseGpuFamilies }))
      describe(`${family} in ${compute}`, () => {
        const ground: Ground = { spec, open: () => new CudaDevice(compute), passRows: 2048 };

        test("alone, with 3, with 31, bit for bit", async () => {
          const everyone = await train(range(32), ground);
          const few = await train([5, 2, 0, 17], ground);
          for (const i of [2, 0, 17]) {
            const alone = (await train([i], ground)).get(i)!;
            expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
            expectSame(everyone.get(i)!, alone);
            expectSame(few.get(i)!, alone);
          }
        });

        test("next to adapters whose numbers are NaN, bit for bit", async () => {
          const all = await train([1, 2, 3, 0], { ...ground, lost: [1, 3] });
          for (const i of [1, 3]) expect(all.get(i)!.losses.at(-1)).toBeNaN();
          for (const i of [2, 0]) expectSame(all.get(i)!, (await train([i], ground)).get(i)!);
        });

        test("the same run twice, and over two stages on one GPU", async () => {
          const [once, again] = [await train([1, 2, 5], ground), await train([1, 2, 5], ground)];
          const staged = await train([1, 2, 5], ground, [1]);
          for (const i of [1, 2, 5]) {
            expectSame(again.get(i)!, once.get(i)!);
            expectSame(staged.get(i)!, once.get(i)!);
          }
        });
      });
});
