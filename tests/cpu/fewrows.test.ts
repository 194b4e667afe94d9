// Sequences that are extended a row each: on the cpu device by plain products, as GPUs do it by kernels of their own.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { fewRowsLikeFloat64 } from "../helpers/fewrows.ts";
import { fusesRows } from "../helpers/fewrows-fused.ts";
import { ADAPTERS, generated, nextLogits, tinyGenerator, tinyPrompts } from "../helpers/generation.ts";
import { overlapsNothing } from "../helpers/overlapping.ts";
import { tinyFamilies } from "../helpers/tiny.ts";

/** Extends sequences as a GPU does. */
class RowDevice extends CpuDevice {
  override readonly hasFewRows = true;
}

describe("linears with what follows them, on the cpu", () => fusesRows(() => new CpuDevice(2), 0.1 ** 6));

describe("layers of few rows, on the cpu", () => overlapsNothing(() => new CpuDevice(2), [1, 5], 3, 4));

describe("sequences that are extended by row", () => {
  for (const [family, spec] of Object.entries(tinyFamilies)) {
    test(`have the logits of those that are extended by tile: ${family}`, async () => {
      using rows = await tinyGenerator(new RowDevice(2), spec, { sequences: 40 });
      using tiles = await tinyGenerator(new CpuDevice(2), spec, { sequences: 40 });
      const sequences = range(17).map((i) => {
        const adapter = (i % (ADAPTERS.length + 1)) - 1;
        return { adapter, ids: range(3 + (i % 5)).map((j) => (7 * i + 3 * j + 1) % spec.vocab), firstRow: 128 * i };
      });
      const [one, other] = await Promise.all(
        [rows, tiles].map(async (generator) => {
          const { tile } = generator;
          for (const of of sequences) await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], 3, tile));
          const all = await nextLogits(generator, decode(sequences, 3, tile));
          const next = await generator.run(decode(sequences, 3, tile));
          const some = decode(sequences, 3, tile);
          some.choices.logits.set([1, 0, 1, 1]);
          return { all, next, some: (await generator.run(some)).logits };
        }),
      );
      expect(one!.all.length).toBe(sequences.length);
      for (const [i, logits] of one!.all.entries()) {
        const want = other!.all[i]!;
        const size = Math.hypot(...want);
        expect(Math.hypot(...want.map((value, j) => value - logits[j]!)) / size).toBeLessThan(1e-5);
      }
      expect(one!.next.tokens).toEqual(other!.next.tokens);
      expect(one!.some).toEqual([0, 2, 3].map((i) => one!.all[i]!));
      for (const [i, logProb] of one!.next.logProbs.entries()) expect(logProb).toBeCloseTo(other!.next.logProbs[i]!, 4);
    });
  }

  test("have the same tokens as those that are extended by tile, with what is drawn by chance", async () => {
    const spec = Object.values(tinyFamilies)[0]!;
    using rows = await tinyGenerator(new RowDevice(2), spec, { sequences: 9 });
    using tiles = await tinyGenerator(new CpuDevice(2), spec, { sequences: 9 });
    const prompts = tinyPrompts(spec, 4);
    for (const sampling of [
      { temperature: 0, topK: 0, topP: 1 },
      { temperature: 0.9, topK: 20, topP: 0.9 },
    ])
      expect(await generated(rows, prompts, sampling)).toEqual(await generated(tiles, prompts, sampling));
  });
});

describe("a linear layer over few rows", () => fewRowsLikeFloat64(() => new CpuDevice(2), 1e-5, false));
