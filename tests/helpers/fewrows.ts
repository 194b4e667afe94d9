// Linear layers over few rows on any device, against float64: fresh random inputs, unequal ranks, poisoned outputs, and rows
// alone and among others.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import { firstRows, rowsFrom } from "../../src/device/arena.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { fewRowsForward, type RowAdapters } from "../../src/ops/fewrows.ts";

type Case = {
  readonly K: number;
  readonly columns: readonly number[];
  /** Of each adapter and linear. */
  readonly ranks: readonly (readonly number[])[];
  readonly rows: number;
  readonly bias?: boolean;
  readonly residual?: boolean;
  /** Every other adapter has a gain of each column. */
  readonly gains?: boolean;
};

const CASES: Readonly<Record<string, Case>> = {
  "q, k, v of a small model": {
    K: 576,
    columns: [576, 192, 192],
    ranks: [
      [16, 16, 16],
      [3, 0, 8],
      [64, 17, 1],
    ],
    rows: 21,
    gains: true,
  },
  "one linear, deep": { K: 4352, columns: [136], ranks: [[16], [5], [256]], rows: 70, residual: true, gains: true },
  "one row": { K: 2056, columns: [64, 64], ranks: [[8, 0]], rows: 1, bias: true },
  "no adapter": { K: 1024, columns: [520], ranks: [], rows: 9, bias: true, residual: true },
  "many rows": {
    K: 264,
    columns: [72, 40],
    ranks: [
      [1, 33],
      [0, 16],
      [16, 0],
      [8, 8],
    ],
    rows: 300,
    residual: true,
  },
};

const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

/** Bytes of scratch. */
const ROOM = 2 ** 26;

/** `isInvariant`: rows have the same bits alone, as on devices that extend sequences so. */
export function fewRowsLikeFloat64(open: () => Device, tolerance: number, isInvariant: boolean): void {
  for (const [name, { K, columns, ranks, rows, bias = false, residual = false, gains = false }] of Object.entries(CASES))
    test(name, async () => {
      using device = open();
      device.reserveScratch(ROOM);
      const seed = Math.floor(1e9 * Math.random());
      const rng = new Rng(seed);
      const { compute } = device;
      const exact = (values: Float32Array) => toF32(new Uint8Array(toBf16(values).buffer), "bf16");
      const random = (size: number, scale: number) => exact(Float32Array.from({ length: size }, () => scale * rng.normal()));
      const put = (dtype: Tensor["dtype"], data: Float32Array | Int32Array | BigInt64Array, ...shape: number[]): Tensor => {
        const to = { ptr: device.allocate(Math.max(256, sizeOf(shape) * bytesOf(dtype)), "a test"), dtype, shape };
        device.write(to, dtype === compute && data instanceof Float32Array && compute === "bf16" ? toBf16(data) : data);
        return to;
      };
      const N = sum(columns);
      const firstColumn = [0, ...columns.map((_, g) => sum(columns.slice(0, g + 1)))];
      const [x, w] = [random(rows * K, 1), random(N * K, 1 / Math.sqrt(K))];
      const [b, r] = [random(N, 1), random(rows * N, 1)];
      const G = columns.length;
      const of = ranks.map((own, l) =>
        own.map((rank, g) => ({
          a: random(rank * K, 1 / Math.sqrt(K)),
          b: random(rank * columns[g]!, 0.5),
          scale: 0.25 * (1 + l + g),
        })),
      );
      const adapterOf = range(rows).map((m) => ((m * 7) % (ranks.length + 1)) - 1);
      const addresses = new BigInt64Array(Math.max(1, ranks.length) * G * 4);
      for (const [l, own] of of.entries())
        for (const [g, { a, b }] of own.entries())
          if (ranks[l]![g]! > 0)
            for (const [which, values] of [a, b].entries())
              addresses[(l * G + g) * 4 + which] = BigInt(put(compute, values, values.length).ptr);
      const gainOf = ranks.map((own, l) =>
        Float32Array.from({ length: N }, (_, n) => {
          const g = firstColumn.findLastIndex((first) => first <= n);
          return gains && l % 2 === 0 && own[g]! > 0 ? 1 + 0.3 * rng.normal() : 1;
        }),
      );
      const vectors = new BigInt64Array(Math.max(1, ranks.length) * G * 4);
      for (const [l, values] of gainOf.entries()) vectors[l * G * 4 + 2] = BigInt(put("f32", values, N).ptr);
      const decomposed = Int32Array.from(ranks, (_, l) => (gains && l % 2 === 0 ? 1 : 0));
      const rowAdapter = put("i32", Int32Array.from(adapterOf), rows);
      const lora: RowAdapters | null =
        ranks.length === 0
          ? null
          : {
              span: { least: 1, most: Math.max(...ranks.flat()) },
              rowAdapter,
              factors: put("i64", addresses, ranks.length, G, 4),
              ranks: put("i32", Int32Array.from(ranks.flat()), ranks.length, G),
              scale: put("f32", Float32Array.from(of.flatMap((own) => own.map(({ scale }) => scale))), ranks.length, G),
              firstColumn,
              gains: gains
                ? { vectors: put("i64", vectors, ranks.length, G, 4), decomposed: put("i32", decomposed, ranks.length) }
                : null,
            };
      const [X, W, Y] = [put(compute, x, rows, K), put(compute, w, N, K), put(compute, r, rows, N)];
      const B = bias ? put(compute, b, N) : null;
      const R = residual ? put(compute, r, rows, N) : null;
      const run = async (from: number, count: number) => {
        device.write(Y, new Uint8Array(rows * N * bytesOf(compute)).fill(0xff)); // NaN
        const part = (t: Tensor) => rowsFrom(t, from, count);
        const own = lora && { ...lora, rowAdapter: part(rowAdapter) };
        fewRowsForward(device, { x: part(X), weight: W, bias: B, residual: R && part(R), y: firstRows(Y, count), lora: own });
        return toF32(await device.read(firstRows(Y, count)), compute);
      };
      const all = await run(0, rows);
      let worst = 0;
      for (const m of [0, 1, 2, 3, rows >> 1, rows - 1].filter((m) => m < rows)) {
        const l = adapterOf[m]!;
        const row = x.subarray(m * K, (m + 1) * K);
        const dot = (a: Float32Array, at: number) => row.reduce((total, value, k) => total + value * a[at * K + k]!, 0);
        for (const [g, width] of columns.entries()) {
          const rank = l < 0 ? 0 : ranks[l]![g]!;
          const s = range(rank).map((j) => dot(of[l]![g]!.a, j));
          for (const i of range(width)) {
            const n = firstColumn[g]! + i;
            const added = s.reduce((total, value, j) => total + value * of[l]![g]!.b[j * width + i]!, 0);
            const product = dot(w, n) + (rank > 0 ? of[l]![g]!.scale * added : 0);
            const want = product * (l < 0 ? 1 : gainOf[l]![n]!) + (bias ? b[n]! : 0) + (residual ? r[m * N + n]! : 0);
            worst = Math.max(worst, Math.abs(all[m * N + n]! - want) / (1 + Math.abs(want)));
          }
        }
      }
      expect(worst, `seed ${seed}`).toBeLessThan(tolerance);
      if (!isInvariant) return;
      for (const [from, count] of [
        [0, 1],
        [rows - 1, 1],
        [rows >> 1, Math.min(17, rows - (rows >> 1))],
      ] as const) {
        const few = await run(from, count);
        expect(bits(few), `rows ${from} to ${from + count} apart, seed ${seed}`).toBe(
          bits(all.slice(from * N, (from + count) * N)),
        );
      }
    });
}
