// Generation on the GPU: its kernels against float64, its greedy tokens against the cpu device's, and what co-batching changes
// (nothing).

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { decodesLikeFloat64 } from "../helpers/decode.ts";
import { ADAPTERS, generated, nextLogits, tinyGenerator, tinyPrompts } from "../helpers/generation.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { watchRouters } from "../helpers/routers.ts";

/** The length of the difference of two vectors, as a part of the second's. */
const apart = (got: Float32Array, want: Float32Array): number =>
  Math.hypot(...want.map((value, i) => value - got[i]!)) / Math.hypot(...want);

const bytes = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

needs("gpu")("the kernels of generation in f32", () => decodesLikeFloat64(() => new CudaDevice("f32"), 3e-6));
// Rounded to bf16 once: a part in 2^8 at most, and about half of that on average.
needs("gpu")("the kernels of generation in bf16", () => decodesLikeFloat64(() => new CudaDevice("bf16"), 2 ** -8));

needs("gpu")("generation on the GPU", () => {
  for (const [family, spec] of Object.entries({ ...gpuFamilies, ...sparseGpuFamilies }))
    describe(family, () => {
      test("in f32 has the cpu device's greedy tokens", async () => {
        using cpu = await tinyGenerator(new CpuDevice(), spec, { sequences: 16 });
        using gpu = await tinyGenerator(new CudaDevice("f32"), spec, { sequences: 16 });
        const prompts = tinyPrompts(spec, 4); // the likeliest token is at least 5e-3 above the next in all of these
        expect(await generated(gpu, prompts)).toEqual(await generated(cpu, prompts));
      });

      test("without any adapter, too", async () => {
        const alone = tinyPrompts(spec, 12, 0);
        using cpu = await tinyGenerator(new CpuDevice(), spec, {}, []);
        using gpu = await tinyGenerator(new CudaDevice("f32"), spec, {}, []);
        expect(await generated(gpu, alone)).toEqual(await generated(cpu, alone));
      });

      for (const compute of ["f32", "bf16"] as const) {
        // Rounding may turn the choice of an expert over, where logits of a router are alike: then nothing later is compared.
        test(`in ${compute} a token's logits over what is kept are near those of reading the whole again`, async () => {
          const device = new CudaDevice(compute);
          using generator = await tinyGenerator(device, spec);
          using routers = watchRouters(device, generator.stage);
          const near = compute === "f32" ? 1e-5 : 3e-2;
          const { tile } = generator;
          let compared = 0;
          for (const { adapter, prompt } of tinyPrompts(spec, 1)) {
            const ids = [...prompt];
            const [kept, again] = [
              { adapter, ids, firstRow: 128 },
              { adapter, ids, firstRow: 512 },
            ];
            await nextLogits(generator, prefill([kept], ADAPTERS.length, tile));
            let isSame = true;
            for (const i of range(6)) {
              ids.push((7 * i + ids.length) % spec.vocab);
              const [logits] = await nextLogits(generator, decode([kept], ADAPTERS.length, tile));
              const mine = await routers.of(0);
              const [whole] = await nextLogits(generator, prefill([again], ADAPTERS.length, tile));
              const theirs = await routers.of(ids.length - 1);
              for (const [layer, choice] of mine.entries()) {
                if (isSame) expect(apart(choice.logits, theirs[layer]!.logits)).toBeLessThan(near);
                isSame &&= choice.experts.toSorted().join() === theirs[layer]!.experts.toSorted().join();
              }
              if (!isSame) continue;
              expect(apart(logits!, whole!)).toBeLessThan(near);
              compared++;
            }
          }
          if (compute === "f32") expect(compared).toBe(24);
          else expect(compared).toBeGreaterThan(8);
        });

        test(`in ${compute} other adapters change no bit of the logits, and no token`, async () => {
          using generator = await tinyGenerator(new CudaDevice(compute), spec, { sequences: 40 });
          const { tile } = generator;
          const wanted = tinyPrompts(spec, 9);
          const sampling = { temperature: 0.9, topK: 0, topP: 0.95 };
          const together = await generated(generator, wanted, sampling);
          expect((await generated(generator, wanted.toReversed(), sampling)).reverse()).toEqual(together);
          for (const i of [0, 1, 2, 3, 30]) expect(await generated(generator, [wanted[i]!], sampling)).toEqual([together[i]!]);

          for (const [i, adapter] of [-1, 0, 1, 2, -1, 0, 1, 2].entries()) {
            const mine = { adapter, ids: range(i < 4 ? 9 : 70).map((j) => (5 * j + 3) % 53), firstRow: 0 };
            const before = { adapter, ids: range(50).map((j) => (7 * j + 1) % 53), firstRow: 256 };
            const [read] = await nextLogits(generator, prefill([mine], ADAPTERS.length, tile));
            const [, next] = await nextLogits(generator, prefill([before, mine], ADAPTERS.length, tile));
            expect(bytes(next!)).toBe(bytes(read!));
          }

          for (const adapter of [-1, 0, 1, 2]) {
            const mine = { adapter, ids: range(9).map((i) => (5 * i + 3) % 53), firstRow: 0 };
            // A state of linear attention moves on with each token that is read.
            const read = () => nextLogits(generator, prefill([{ ...mine, ids: mine.ids.slice(0, -1) }], ADAPTERS.length, tile));
            await read();
            const [alone] = await nextLogits(generator, decode([mine], ADAPTERS.length, tile));
            const others = [-1, 0, 1, 2].flatMap((of) => {
              return range(9).map((i) => ({ adapter: of, ids: [i + 1], firstRow: 128 * (9 * (of + 1) + i + 1) }));
            });
            for (const before of [0, 1, 4, 9]) {
              const same = others.filter((other) => other.adapter === adapter);
              const beside = others.filter((other) => other.adapter !== adapter);
              const sequences = [...beside, ...same.slice(0, before), mine, ...same.slice(before)];
              await read();
              const all = await nextLogits(generator, decode(sequences, ADAPTERS.length, tile));
              expect(bytes(all[sequences.indexOf(mine)]!)).toBe(bytes(alone!));
            }
          }
        });
      }
    });
});
