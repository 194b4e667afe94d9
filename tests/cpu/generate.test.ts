// Generation: what is kept is what would be computed anew, and a sequence's tokens do not depend on its company.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { ADAPTERS, generated, tinyGenerator, tinyPrompts } from "../helpers/generation.ts";
import { tinyFamilies, tinySpec } from "../helpers/tiny.ts";

const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
const farthest = (a: Float32Array, b: Float32Array) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);

for (const [family, spec] of Object.entries(tinyFamilies))
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
        let [logits] = await generator.run(prefill([kept], slots, tile), 1);
        for (const i of range(12)) {
          ids.push((7 * i + ids.length) % spec.vocab);
          [logits] = await generator.run(decode([kept], slots, tile), 1);
          const [whole] = await generator.run(prefill([again], slots, tile), 1);
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
  const wide = tinySpec({ hidden: 200, intermediate: 640, vocab: 700, headDim: 50 }); // products that OpenBLAS does not call small

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
      const [read] = await generator.run(prefill([{ ...mine, ids: ids.slice(0, -1) }], slots, tile), 1);
      const [alone] = await generator.run(decode([mine], slots, tile), 1);
      expect(bits(alone!)).not.toBe(bits(read!));
      const others = [-1, 0, 1, 2].flatMap((of) =>
        range(tile.alike.length - 1).map((i) => ({ adapter: of, ids: [i + 1], firstRow: 200 * (of + 2) + i })),
      );
      for (const before of range(tile.alike.length)) {
        const beside = others.filter((other) => other.adapter !== adapter);
        const same = others.filter((other) => other.adapter === adapter);
        const sequences = [...beside, ...same.slice(0, before), mine, ...same.slice(before).slice(0, 3)];
        const all = await generator.run(decode(sequences, slots, tile), sequences.length);
        expect(bits(all[sequences.indexOf(mine)]!), `adapter ${adapter}, place ${before}`).toBe(bits(alone!));
      }
    }
  });
});
