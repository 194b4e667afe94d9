// Sequences that are extended a row each: on the cpu device by plain products, as GPUs do it by kernels of their own.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { keepsStates } from "../../src/engine/generation/kv-cache.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { crowdTables } from "../helpers/crowd.ts";
import { fewExpertsLikeFloat64 } from "../helpers/fewexperts.ts";
import { fewRowsLikeFloat64 } from "../helpers/fewrows.ts";
import { fusesRows } from "../helpers/fewrows-fused.ts";
import { ADAPTERS, generated, nextLogits, RowDevice, tinyGenerator, tinyPrompts } from "../helpers/generation.ts";
import { overlapsNothing } from "../helpers/overlapping.ts";
import { inExperts, sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

describe("linears with what follows them, on the cpu", () => fusesRows(() => new CpuDevice(2), 0.1 ** 6));

/** Adapters on what the model has, experts and tables among it, and one that makes its factors. */
function adaptersFor(spec: ModelSpec): readonly PoolAdapter[] {
  const vera: PoolAdapter = { rank: 6, scale: 1, targets: ["q_proj", "o_proj", "up_proj"], method: "vera" };
  const ofTables = range(5).flatMap((i): PoolAdapter[] => {
    const tables = crowdTables(i, spec);
    return tables ? [{ ...ADAPTERS[0]!, tables }] : [];
  });
  return [...ADAPTERS, ...(spec.experts ? inExperts(spec) : []), vera, ...ofTables];
}
describe("layers of few rows, on the cpu", () => overlapsNothing(() => new CpuDevice(2), [1, 5], 3, 4));

describe("sequences that are extended by row", () => {
  for (const [family, spec] of Object.entries({ ...tinyFamilies, ...sparseFamilies })) {
    test(`have the logits of those that are extended by tile: ${family}`, async () => {
      const adapters = adaptersFor(spec);
      using device = new RowDevice(2);
      using rows = await tinyGenerator(device, spec, { sequences: 40 }, adapters);
      using tiles = await tinyGenerator(new CpuDevice(2), spec, { sequences: 40 }, adapters);
      const sequences = range(23).map((i) => {
        const adapter = (i % (adapters.length + 1)) - 1;
        return { adapter, ids: range(3 + (i % 5)).map((j) => (7 * i + 3 * j + 1) % spec.vocab), firstRow: 128 * i };
      });
      const [one, other] = await Promise.all(
        [rows, tiles].map(async (generator) => {
          const { tile } = generator;
          for (const of of sequences)
            await generator.run(prefill([{ ...of, ids: of.ids.slice(0, -1) }], adapters.length, tile));
          const all = await nextLogits(generator, decode(sequences, adapters.length, tile));
          const next = await generator.run(decode(sequences, adapters.length, tile));
          const some = decode(sequences, adapters.length, tile);
          some.choices.logits.set([1, 0, 1, 1]);
          return { all, next, some: (await generator.run(some)).logits };
        }),
      );
      expect(one!.all.length).toBe(sequences.length);
      for (const [found, wanted] of [
        [one!.all, other!.all],
        [one!.some, other!.some],
      ] as const)
        for (const [i, logits] of found.entries()) {
          const want = wanted[i]!;
          const size = Math.hypot(...want);
          expect(Math.hypot(...want.map((value, j) => value - logits[j]!)) / size).toBeLessThan(1e-5);
        }
      expect(one!.next.tokens).toEqual(other!.next.tokens);
      expect(one!.some.length).toBe(3);
      if (!keepsStates(spec)) expect(one!.some).toEqual([0, 2, 3].map((i) => one!.all[i]!)); // states move with each pass
      for (const [i, logProb] of one!.next.logProbs.entries()) expect(logProb).toBeCloseTo(other!.next.logProbs[i]!, 4);
    });
  }

  for (const [family, spec] of Object.entries({ ...tinyFamilies, ...sparseFamilies }))
    if (!keepsStates(spec))
      test(`have the same tokens where prompts are read next to them, short ones by rows and long ones by tiles: ${family}`, async () => {
        const adapters = adaptersFor(spec);
        const prompts = tinyPrompts(spec, 2, adapters.length);
        using rows = await tinyGenerator(new RowDevice(2), spec, { sequences: 11 }, adapters);
        using tiles = await tinyGenerator(new CpuDevice(2), spec, { sequences: 11 }, adapters);
        const wanted = await generated(tiles, prompts);
        for (const tiledPrompt of [1, 24, null])
          expect(await generated({ ...rows, reading: "rows", tiledPrompt }, prompts)).toEqual(wanted);
      });

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

describe("a linear layer over few rows", () =>
  fewRowsLikeFloat64(() => new CpuDevice(2), 1e-5, false, ["dense", "int8", "nf4"]));

describe("experts over few rows", () => fewExpertsLikeFloat64(() => new CpuDevice(2), 1e-5, false, ["dense", "nf4", "mxfp4"]));
