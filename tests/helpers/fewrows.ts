// Linear layers over few rows on any device, against float64: fresh random inputs, unequal ranks, poisoned outputs, and rows
// alone and among others.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import type { PackedFormat, WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import { firstRows, rowsFrom } from "../../src/device/arena.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { readingOf } from "../../src/device/fewrows.ts";
import { type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { fewRowsForward, type RowAdapters } from "../../src/ops/fewrows.ts";
import { dequantise, quantise } from "../../src/ops/packed.ts";
import { packedValues } from "./packed-values.ts";

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
  "many rows, in several pieces": {
    K: 1088,
    columns: [72, 72],
    ranks: [
      [8, 0],
      [3, 40],
    ],
    rows: 300,
    bias: true,
  },
  "as many rows as at once": { K: 640, columns: [200], ranks: [[8], [20]], rows: 470, residual: true },
};

const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

/** Bytes of scratch. */
const ROOM = 2 ** 26;

/** The nearest of e4m3, of two as near that whose last bit is 0: 3 bits of fraction, exponents from -6 on. */
function nearestE4m3(value: number): number {
  if (value === 0) return 0;
  const unit = 2 ** (Math.max(-6, Math.floor(Math.log2(Math.abs(value)))) - 3);
  const [whole, rest] = [Math.floor(value / unit), value / unit - Math.floor(value / unit)];
  return unit * (rest > 0.5 || (rest === 0.5 && whole % 2 !== 0) ? whole + 1 : whole);
}

/** Rows of x as products in e4m3 read them. */
function inE4m3(x: Float32Array, K: number): Float32Array {
  const most = range(x.length / K).map((m) => x.subarray(m * K, (m + 1) * K).reduce((all, v) => Math.max(all, Math.abs(v)), 0));
  return x.map((value, i) => {
    const largest = most[Math.floor(i / K)]!;
    return nearestE4m3(Math.fround(value * Math.fround(448 / largest))) * Math.fround(largest / 448);
  });
}

/** A weight c[N, K] of these linears in fewer bits, and what it is then. */
async function packedOn(device: Device, format: PackedFormat, from: Tensor, firstRow: readonly number[]) {
  const [N, K] = from.shape as [number, number];
  const layout = { format, shape: [N, K], firstRow } as const;
  const weight: PackedWeight = { ...layout, ptr: device.allocate(partsOf(layout).bytes, "a test") };
  const size = (N * K) / 64 + 64;
  const absmax: Tensor = { ptr: device.allocate(4 * size, "a test"), dtype: "f32", shape: [size] };
  for (const linear of range(firstRow.length - 1)) {
    const rows = firstRow[linear + 1]! - firstRow[linear]!;
    quantise(device, { from: rowsFrom(from, firstRow[linear]!, rows), weight, linear, absmax });
  }
  // Where blocks are not whole, or in f32, the weight is taken apart before, and rounded to what the device computes in.
  const isRead = readingOf(device.compute, format, K) !== "apart";
  return {
    weight,
    values: isRead ? await packedValues(device, weight, format === "nf4") : await roundedValues(device, weight),
  };
}

/** A weight in fewer bits as the device takes it apart. */
async function roundedValues(device: Device, weight: PackedWeight): Promise<Float32Array> {
  const [N, K] = weight.shape;
  const dtype = device.compute;
  const out: Tensor = { ptr: device.allocate(N * K * bytesOf(dtype), "a test"), dtype, shape: [N, K] };
  dequantise(device, { weight, out });
  return toF32(await device.read(out), dtype);
}

/** `isInvariant`: rows have the same bits alone, as on devices that extend sequences so. */
export function fewRowsLikeFloat64(
  open: () => Device,
  tolerance: number,
  isInvariant: boolean,
  formats: readonly WeightFormat[] = ["dense"],
): void {
  const all = formats.flatMap((format) => Object.entries(CASES).map(([name, of]) => ({ name, format, ...of })));
  for (const { name, format, K, columns, ranks, rows, bias = false, residual = false, gains = false } of all)
    test.skipIf(format === "fp8" && K % 16 !== 0)(format === "dense" ? name : `${name}, in ${format}`, async () => {
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
      const [given, dense] = [random(rows * K, 1), random(N * K, 1 / Math.sqrt(K))];
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
      const [X, W, Y] = [put(compute, given, rows, K), put(compute, dense, N, K), put(compute, r, rows, N)];
      const { weight, values: w } =
        format === "dense" ? { weight: W, values: dense } : await packedOn(device, format, W, firstColumn);
      const x = format === "fp8" ? inE4m3(given, K) : given;
      const B = bias ? put(compute, b, N) : null;
      const R = residual ? put(compute, r, rows, N) : null;
      const run = async (from: number, count: number) => {
        device.write(Y, new Uint8Array(rows * N * bytesOf(compute)).fill(0xff)); // NaN
        const part = (t: Tensor) => rowsFrom(t, from, count);
        const own = lora && { ...lora, rowAdapter: part(rowAdapter) };
        fewRowsForward(device, { x: part(X), weight, bias: B, residual: R && part(R), y: firstRows(Y, count), lora: own });
        return toF32(await device.read(firstRows(Y, count)), compute);
      };
      const all = await run(0, rows);
      let worst = 0;
      for (const m of [0, 1, 2, 3, rows >> 1, rows - 1].filter((m) => m < rows)) {
        const l = adapterOf[m]!;
        const [row, exactRow] = [x, given].map((of) => of.subarray(m * K, (m + 1) * K)) as [Float32Array, Float32Array];
        const dot = (a: ArrayLike<number>, at: number, of = row) =>
          of.reduce((total, value, k) => total + value * a[at * K + k]!, 0);
        for (const [g, width] of columns.entries()) {
          const rank = l < 0 ? 0 : ranks[l]![g]!;
          const s = range(rank).map((j) => dot(of[l]![g]!.a, j, exactRow));
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
        [0, Math.min(100, rows)],
        [0, Math.min(200, rows)],
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
