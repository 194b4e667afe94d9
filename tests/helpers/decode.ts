// The kernels of generation on any device, against float64: fresh random inputs, poisoned outputs.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { attentionDecode, cacheWrite } from "../../src/ops/decode.ts";

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

/** Rows of the cache before each sequence's first. */
const firstRows = LENGTHS.map((_, i) => 3 + LENGTHS.slice(0, i).reduce((rows, length) => rows + length + 2, 0));
const CACHE_ROWS = 3 + LENGTHS.reduce((rows, length) => rows + length + 2, 0);

export function decodesLikeFloat64(open: () => Device, limit: number): void {
  test.each(CASES)("attention over what is kept: %o", async (of) => {
    const { heads, kvHeads, headDim, window, cap } = of;
    using device = open();
    const on = opened(device);
    const rng = new Rng(67, headDim);
    const [W, K] = [(heads + 2 * kvHeads) * headDim, kvHeads * headDim];
    const [qkv, cache] = [random(rng, LENGTHS.length * W), random(rng, CACHE_ROWS * 2 * K)];
    const bounds = LENGTHS.flatMap((length, i) => [firstRows[i]!, firstRows[i]! + length]);
    const run = async (rows: readonly number[]) => {
      const M = rows.length;
      const part = Float32Array.from(rows.flatMap((row) => [...qkv.subarray(row * W, (row + 1) * W)]));
      const out = on.values(new Float32Array(M * heads * headDim).fill(Number.NaN), M, heads * headDim);
      attentionDecode(device, {
        ...{ qkv: on.values(part, M, W), cache: on.values(cache, CACHE_ROWS, 2 * K), out, sinks: null },
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
        const kv = (j: number, d: number) => cache[j * 2 * K + Math.floor((head * kvHeads) / heads) * headDim + d]!;
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

  test("keys and values are kept where they belong, and nothing else is touched", async () => {
    for (const { heads, kvHeads, headDim } of CASES) {
      using device = open();
      const on = opened(device);
      const rng = new Rng(7, headDim);
      const [W, K] = [(heads + 2 * kvHeads) * headDim, kvHeads * headDim];
      const places = [4, -1, 0, 19, -(2 ** 31), 7];
      const [qkv, before] = [random(rng, places.length * W), random(rng, 20 * 2 * K)];
      const cache = on.values(before, 20, 2 * K);
      const args = { qkv: on.values(qkv, places.length, W), places: on.ints(places, places.length), cache };
      cacheWrite(device, { ...args, heads, kvHeads, headDim });
      const want = before.slice();
      for (const [row, place] of places.entries())
        if (place >= 0) want.set(qkv.subarray(row * W + heads * headDim, (row + 1) * W), place * 2 * K);
      expect([...(await on.read(cache))]).toEqual([...want]);
    }
  });
}
