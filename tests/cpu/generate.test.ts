// Generation: what is kept is what would be computed anew, and a sequence's tokens do not depend on what is co-batched.

import { describe, expect, test } from "bun:test";
import { range, sum } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { PAGE } from "../../src/ops/decode.ts";
import { generationBytes, planGeneration, tileOf } from "../../src/plan/generation.ts";
import { decode, prefill, tiledRows } from "../../src/schedule/decode.ts";
import { ADAPTERS, generated, nextLogits, tinyGenerator, tinyPrompts } from "../helpers/generation.ts";
import { sparseFamilies, tinyFamilies, tinySpec } from "../helpers/tiny.ts";

const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
const farthest = (a: Float32Array, b: Float32Array) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);

for (const [family, spec] of Object.entries({ ...tinyFamilies, ...sparseFamilies }))
  describe(family, () => {
    test("a token's logits over what is kept are those of reading the whole again", async () => {
      using generator = await tinyGenerator(new CpuDevice(2), spec);
      const { tile } = generator;
      const slots = ADAPTERS.length;
      for (const { adapter, prompt } of tinyPrompts(spec, 2)) {
        const ids = [...prompt];
        const [kept, again] = [
          { adapter, ids, firstRow: 128 },
          { adapter, ids, firstRow: 512 },
        ];
        let [logits] = await nextLogits(generator, prefill([kept], slots, tile));
        for (const i of range(12)) {
          ids.push((7 * i + ids.length) % spec.vocab);
          [logits] = await nextLogits(generator, decode([kept], slots, tile));
          const [whole] = await nextLogits(generator, prefill([again], slots, tile));
          expect(farthest(logits!, whole!)).toBeLessThan(1e-4);
          expect(Math.max(...logits!) - Math.min(...logits!)).toBeGreaterThan(0.1);
        }
      }
    });

    test("a sequence's tokens are the same alone and among others, wherever it lies", async () => {
      using generator = await tinyGenerator(new CpuDevice(2), spec, { sequences: 40 });
      const wanted = tinyPrompts(spec, 9);
      for (const sampling of [
        { temperature: 0, topK: 0, topP: 1 },
        { temperature: 0.9, topK: 0, topP: 0.95 },
      ]) {
        const together = await generated(generator, wanted, sampling);
        expect(together.map((tokens) => tokens.length)).toEqual(wanted.map(({ limit }) => limit));
        const backwards = (await generated(generator, wanted.toReversed(), sampling)).reverse();
        expect(backwards).toEqual(together);
        for (const i of [0, 1, 2, 3, 14, 30])
          expect(await generated(generator, [wanted[i]!], sampling)).toEqual([together[i]!]);
      }
    });
  });

describe("bit for bit", () => {
  // products that OpenBLAS does not call small
  const wide = tinySpec({ hidden: 200, intermediate: 640, vocab: 700, headDim: 50 });

  test.each([
    ["narrow", tinyFamilies["llama"]!, "dense"],
    ["wide", wide, "dense"],
    ["wide", wide, "nf4"],
  ] as const)("a row's logits do not depend on its place in a tile, nor on other tiles: %s", async (_, spec, format) => {
    using generator = await tinyGenerator(new CpuDevice(2), spec, { sequences: 100, format });
    const { tile } = generator;
    const slots = ADAPTERS.length;
    for (const adapter of [-1, 0, 1, 2]) {
      const ids = range(9).map((i) => (5 * i + 3) % 53);
      const mine = { adapter, ids, firstRow: 0 };
      const [read] = await nextLogits(generator, prefill([{ ...mine, ids: ids.slice(0, -1) }], slots, tile));
      const [alone] = await nextLogits(generator, decode([mine], slots, tile));
      expect(bits(alone!)).not.toBe(bits(read!));
      const others = [-1, 0, 1, 2].flatMap((of) =>
        range(tile.sameOrder.length - 1).map((i) => ({ adapter: of, ids: [i + 1], firstRow: 200 * (of + 2) + i })),
      );
      for (const before of range(tile.sameOrder.length)) {
        const beside = others.filter((other) => other.adapter !== adapter);
        const same = others.filter((other) => other.adapter === adapter);
        const sequences = [...beside, ...same.slice(0, before), mine, ...same.slice(before).slice(0, 3)];
        const all = await nextLogits(generator, decode(sequences, slots, tile));
        expect(bits(all[sequences.indexOf(mine)]!), `adapter ${adapter}, place ${before}`).toBe(bits(alone!));
      }
    }
  });
});

describe("memory", () => {
  test("is what was planned, and all of it is given back", async () => {
    for (const [family, format] of [
      ["llama", "dense"],
      ["qwen2", "nf4"],
      ["qwen3", "int8"],
    ] as const)
      for (const adapters of [ADAPTERS, ADAPTERS.slice(0, 1), []]) {
        const spec = tinyFamilies[family]!;
        const device = new CpuDevice(2);
        const generator = await tinyGenerator(device, spec, { format }, adapters);
        await generated(generator, tinyPrompts(spec, 3, adapters.length));
        expect(device.allocated).toBe(generationBytes(spec, device, generator.sizes));
        generator[Symbol.dispose]();
        expect(device.allocated).toBe(0);
      }
  });

  const report = chooseDevice("cpu", "fp32");
  const spec = tinyFamilies["llama"]!;
  const named = ADAPTERS.map((adapter, i) => ({ ...adapter, name: `a${i}` }));
  const wishes = range(100).map((i) => ({ adapter: (i % 4) - 1, prompt: 3 + i, limit: 100 }));
  const planned = (freeBytes: number) => planGeneration(spec, { ...report, freeBytes }, named, wishes, "dense").stages[0].sizes;

  test("as much as there is decides how many sequences grow at once", () => {
    const most = planned(2 ** 30);
    const pagesFor = (tokens: (of: (typeof wishes)[number]) => number, sequences: number) =>
      sum(
        wishes
          .map((of) => Math.ceil(tokens(of) / PAGE))
          .sort((a, b) => b - a)
          .slice(0, sequences),
      );
    const sequences = 4 * tileOf(report).sameOrder.length; // a tile of each adapter and of the base
    const all = pagesFor(({ prompt, limit }) => prompt + limit, sequences);
    expect(most).toMatchObject({ cache: { sequences, capacity: 202, pages: all }, slots: 3 });
    expect(most.products.dora!.length).toBeGreaterThan(0);
    // Each with pages for its prompt and half of what may follow, and one of them for all that it may come to.
    const enough = (sequences: number, more = 0) => {
      const targets = tiledRows(sequences, tileOf(report));
      const pages =
        more +
        Math.max(
          Math.ceil(202 / PAGE),
          pagesFor(({ prompt, limit }) => prompt + limit / 2, sequences),
        );
      return { bytes: generationBytes(spec, report, { ...most, targets, cache: { sequences, capacity: 202, pages } }), pages };
    };
    const found = (bytes: number) => planned(bytes / 0.7 + 1).cache;
    const few = sequences / 4;
    expect(found(enough(few).bytes)).toMatchObject({ sequences: few, pages: enough(few).pages });
    expect(found(enough(few, 5).bytes)).toMatchObject({ sequences: few, pages: enough(few, 5).pages });
    expect(planned(enough(few).bytes / 0.7 - 1).cache.sequences).toBe(few / 2);
    expect(() => planned(enough(1).bytes / 0.7 - 1)).toThrow("one sequence of 202 tokens needs");
  });
});
