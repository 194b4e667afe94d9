// The kernels of generation on any device, against float64: fresh random inputs, poisoned outputs.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { attentionDecode, cacheWrite, PAGE } from "../../src/ops/decode.ts";

type Case = {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly window: number;
  readonly cap: number;
};

const CASES: readonly Case[] = [
  { heads: 4, kvHeads: 4, headDim: 64, window: 0, cap: 0 },
  { heads: 9, kvHeads: 3, headDim: 64, window: 7, cap: 0 },
  { heads: 8, kvHeads: 1, headDim: 128, window: 0, cap: 0 },
  { heads: 6, kvHeads: 2, headDim: 40, window: 64, cap: 0 },
  { heads: 2, kvHeads: 2, headDim: 24, window: 2 ** 31 - 1, cap: 0 },
  { heads: 4, kvHeads: 2, headDim: 128, window: 1, cap: 0 },
  { heads: 4, kvHeads: 2, headDim: 256, window: 90, cap: 0 },
  { heads: 4, kvHeads: 1, headDim: 512, window: 0, cap: 0 },
  { heads: 4, kvHeads: 2, headDim: 256, window: 0, cap: 1.5 },
  { heads: 3, kvHeads: 3, headDim: 128, window: 37, cap: 1.5 },
];

/** Keys that rows see: none (padding), one, about a block of the kernel's, many. */
const LENGTHS = [0, 1, 2, 63, 64, 65, 0, 128, 129, 700, 5];

const opened = (device: Device) => {
  const { compute } = device;
  const take = (dtype: "i32" | typeof compute, ...shape: number[]): Tensor => {
    return { ptr: device.allocate(sizeOf(shape) * bytesOf(dtype), "a test"), dtype, shape };
  };
  return {
    values(values: Float32Array, ...shape: number[]): Tensor {
      const to = take(compute, ...shape);
      device.write(to, compute === "f32" ? values : toBf16(values));
      return to;
    },
    ints(values: readonly number[], ...shape: number[]): Tensor {
      const to = take("i32", ...shape);
      device.write(to, Int32Array.from(values));
      return to;
    },
    read: async (from: Tensor) => toF32(await device.read(from), compute),
  };
};

/** Random numbers that the device's type holds exactly. */
const random = (rng: Rng, count: number): Float32Array =>
  toF32(new Uint8Array(toBf16(Float32Array.from({ length: count }, () => rng.normal())).buffer), "bf16");

/** Pages of a sequence, and rows before each sequence's first, as they count. */
const OWN = Math.ceil(Math.max(...LENGTHS) / PAGE);
const firstRows = LENGTHS.map((_, i) => i * OWN * PAGE);
const PAGES = LENGTHS.length * OWN;

/** Pages in any order. */
function shuffled(rng: Rng, pages: number): number[] {
  const order = range(pages);
  for (let i = pages - 1; i > 0; i--) {
    const j = rng.below(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
const rowIn = (pages: readonly number[]) => (row: number) => pages[Math.floor(row / PAGE)]! * PAGE + (row % PAGE);

export function decodesLikeFloat64(open: () => Device, limit: number): void {
  test.each(CASES)("attention over what is kept: %o", async (of) => {
    const { heads, kvHeads, headDim, window, cap } = of;
    using device = open();
    const on = opened(device);
    const rng = new Rng(67, headDim);
    const [W, K] = [(heads + 2 * kvHeads) * headDim, kvHeads * headDim];
    const [qkv, kept] = [random(rng, LENGTHS.length * W), random(rng, PAGES * PAGE * 2 * K)];
    const bounds = LENGTHS.flatMap((length, i) => [firstRows[i]!, firstRows[i]! + length]);
    const run = async (rows: readonly number[], pages = shuffled(rng, PAGES)) => {
      const M = rows.length;
      const cache = new Float32Array(kept.length);
      for (const row of range(PAGES * PAGE))
        cache.set(kept.subarray(row * 2 * K, (row + 1) * 2 * K), rowIn(pages)(row) * 2 * K);
      const part = Float32Array.from(rows.flatMap((row) => [...qkv.subarray(row * W, (row + 1) * W)]));
      const out = on.values(new Float32Array(M * heads * headDim).fill(Number.NaN), M, heads * headDim);
      attentionDecode(device, {
        ...{
          qkv: on.values(part, M, W),
          cache: on.values(cache, PAGES * PAGE, 2 * K),
          out,
          sinks: null,
          tiles: null,
          areAllTiled: false,
        },
        pages: on.ints(pages, PAGES),
        ...{ scale: headDim ** -0.5, ...of },
        bounds: on.ints(
          rows.flatMap((row) => [bounds[2 * row]!, bounds[2 * row + 1]!]),
          M,
          2,
        ),
      });
      return on.read(out);
    };
    const got = await run(range(LENGTHS.length));
    for (const [row, length] of LENGTHS.entries())
      for (const head of range(heads)) {
        const first = firstRows[row]! + Math.max(0, window === 0 ? 0 : length - window);
        const keys = range(firstRows[row]! + length - first).map((j) => first + j);
        const kv = (j: number, d: number) => kept[j * 2 * K + Math.floor((head * kvHeads) / heads) * headDim + d]!;
        const q = (d: number) => qkv[row * W + head * headDim + d]!;
        const product = (j: number) => headDim ** -0.5 * range(headDim).reduce((sum, d) => sum + q(d) * kv(j, d), 0);
        const scores = keys.map((j) => (cap > 0 ? cap * Math.tanh(product(j) / cap) : product(j)));
        const most = Math.max(...scores);
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((a, b) => a + b, 0);
        let [difference, size] = [0, 1e-30];
        for (const d of range(headDim)) {
          const want = keys.reduce((sum, j, i) => sum + (weights[i]! / total) * kv(j, K + d), 0);
          const found = got[(row * heads + head) * headDim + d]!;
          if (length === 0) expect(found).toBe(0);
          difference += (found - want) ** 2;
          size += want ** 2;
        }
        if (length > 0) expect(Math.sqrt(difference / size), `row ${row}, head ${head}`).toBeLessThan(limit);
      }
    const order = [9, 3, 0, 8, 5];
    const others = await run(order);
    const width = heads * headDim;
    for (const [i, row] of order.entries())
      expect([...others.subarray(i * width, (i + 1) * width)]).toEqual([...got.subarray(row * width, (row + 1) * width)]);
  });

  test.each(CASES)("rows of a prompt attend as each of them by itself, however they are cut: %o", async (of) => {
    const { heads, kvHeads, headDim } = of;
    using device = open();
    const on = opened(device);
    const rng = new Rng(71, headDim);
    const [W, K] = [(heads + 2 * kvHeads) * headDim, kvHeads * headDim];
    // Two prompts' rows, and in between one that is extended by itself.
    const seen = [...range(90).map((i) => [0, i + 7]), [4, 100], ...range(5).map((i) => [2, i + 1])] as [number, number][];
    const M = seen.length;
    const pages = shuffled(rng, PAGES);
    const args = {
      ...{ qkv: on.values(random(rng, M * W), M, W), pages: on.ints(pages, PAGES), sinks: null },
      ...{ cache: on.values(random(rng, PAGES * PAGE * 2 * K), PAGES * PAGE, 2 * K), scale: headDim ** -0.5, ...of },
    };
    const run = async (tiles: readonly (readonly [number, number])[]) => {
      const out = on.values(new Float32Array(M * heads * headDim).fill(Number.NaN), M, heads * headDim);
      const isRead = (m: number) => tiles.some(([first, rows]) => m >= first && m < first + rows);
      const bounds = seen.flatMap(([of, length], m) => {
        const first = of * OWN * PAGE;
        return [isRead(m) ? ~first : first, first + length];
      });
      const of = tiles.length > 0 ? on.ints(tiles.flat(), tiles.length, 2) : null;
      const areAllTiled = seen.every((_, m) => isRead(m));
      attentionDecode(device, { ...args, out, tiles: of, areAllTiled, bounds: on.ints(bounds, M, 2) });
      return on.read(out);
    };
    const apart = await run([]);
    // biome-ignore format: a line for each
    const cuts = [
      [[0, 64], [64, 26], [91, 5]],
      [[0, 1], [1, 63], [64, 17], [81, 9], [91, 2], [93, 3]],
    ] as const;
    const [one, other] = [await run(cuts[0]), await run(cuts[1])];
    expect([...other]).toEqual([...one]);
    const all = await run([...cuts[0], [90, 1]]);
    const width = heads * headDim;
    for (const m of range(M)) {
      const row = (of: Float32Array) => [...of.subarray(m * width, (m + 1) * width)];
      if (m !== 90) expect(row(all), `row ${m} where all are read in tiles`).toEqual(row(one));
      else for (const [i, value] of row(all).entries()) expect(Math.abs(value - row(apart)[i]!)).toBeLessThan(8 * limit);
    }
    let [difference, size] = [0, 0];
    for (const [i, value] of apart.entries()) {
      difference += (value - one[i]!) ** 2;
      size += value ** 2;
    }
    expect(Math.sqrt(difference / size)).toBeLessThan(2 * limit);
  });

  test("keys and values are kept where they belong, and nothing else is touched", async () => {
    for (const { heads, kvHeads, headDim } of CASES) {
      using device = open();
      const on = opened(device);
      const rng = new Rng(7, headDim);
      const [W, K] = [(heads + 2 * kvHeads) * headDim, kvHeads * headDim];
      const places = [4, -1, 0, 2 * PAGE + 19, -(2 ** 31), PAGE + 7];
      const pages = shuffled(rng, 4);
      const [qkv, before] = [random(rng, places.length * W), random(rng, 4 * PAGE * 2 * K)];
      const cache = on.values(before, 4 * PAGE, 2 * K);
      const args = {
        ...{ qkv: on.values(qkv, places.length, W), places: on.ints(places, places.length), cache, pages: on.ints(pages, 4) },
      };
      cacheWrite(device, { ...args, heads, kvHeads, headDim });
      const want = before.slice();
      for (const [row, place] of places.entries())
        if (place >= 0) want.set(qkv.subarray(row * W + heads * headDim, (row + 1) * W), rowIn(pages)(place) * 2 * K);
      expect([...(await on.read(cache))]).toEqual([...want]);
    }
  });
}
