// Linears over few rows with what follows them in one kernel: the bits of one after the other, for fresh random inputs, unequal
// ranks and poisoned outputs.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import { rowsFrom } from "../../src/device/arena.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toF32 } from "../../src/files/convert.ts";
import { cacheWrite, PAGE } from "../../src/ops/decode.ts";
import { fewRowsNorm, fewRowsNormed, fewRowsRope, fewRowsSwiglu } from "../../src/ops/fewrows/fused.ts";
import { fewRowsForward, type RowAdapters } from "../../src/ops/fewrows.ts";
import { ropeForward } from "../../src/ops/rope.ts";
import { swigluForward } from "../../src/ops/swiglu.ts";
import { tensorsOn } from "./on-device.ts";

const ROOM = 2 ** 26;
/** Columns of what the linears read. */
export const K = 264;

/** Random tensors on a device, and what they hold. */
export function opened(device: Device, rng: Rng) {
  const { compute } = device;
  const { take, put } = tensorsOn(device);
  const floats = (dtype: "f32" | typeof compute, scale: number, ...shape: number[]) =>
    put(
      dtype,
      Float32Array.from({ length: sizeOf(shape) }, () => scale * rng.normal()),
      ...shape,
    );
  return { take, put, floats, values: (scale: number, ...shape: number[]) => floats(compute, scale, ...shape) };
}
type On = ReturnType<typeof opened>;

/** Adapters of unequal ranks on linears of these widths, for rows of all of them and of none. */
export function adaptersOf({ put, values }: On, columns: readonly number[], rows: number): RowAdapters {
  const G = columns.length;
  const ranks = range(3).map((l) => columns.map((_, g) => [16, 3, 0, 33][(l + 2 * g) % 4]!));
  const addresses = new BigInt64Array(3 * G * 4);
  for (const [l, own] of ranks.entries())
    for (const [g, rank] of own.entries()) {
      if (rank === 0) continue;
      addresses[(l * G + g) * 4] = BigInt(values(K ** -0.5, rank * K).ptr);
      addresses[(l * G + g) * 4 + 1] = BigInt(values(0.5, rank * columns[g]!).ptr);
    }
  return {
    span: { least: 3, most: 33 },
    rowAdapter: put(
      "i32",
      Int32Array.from({ length: rows }, (_, m) => ((m * 7) % 4) - 1),
      rows,
    ),
    factors: put("i64", addresses, 3, G, 4),
    ranks: put("i32", Int32Array.from(ranks.flat()), 3, G),
    scale: put(
      "f32",
      Float32Array.from({ length: 3 * G }, (_, i) => 0.25 * (1 + i)),
      3,
      G,
    ),
    firstColumn: [0, ...columns.map((_, g) => sum(columns.slice(0, g + 1)))],
    gains: null,
  };
}

/** The norm of a difference, as a share of that of `wanted`. */
function apart(found: Float32Array, wanted: Float32Array): number {
  const size = (of: Float32Array) => Math.hypot(...of);
  return size(found.map((value, i) => value - wanted[i]!)) / size(wanted);
}

/** `tolerance`: of heads with a norm, whose sums of squares may have another order. */
export function fusesRows(open: () => Device, tolerance: number): void {
  test.each([[[72, 72]], [[144]]])("silu(gate) up, of linears of %o", async (columns) => {
    for (const rows of [1, 21, 150])
      for (const [hasBias, isAdapted] of [
        [false, true],
        [true, false],
        [false, false],
      ] as const) {
        using device = open();
        device.reserveScratch(ROOM);
        const seed = Math.floor(1e9 * Math.random());
        const on = opened(device, new Rng(seed));
        const N = sum(columns);
        const product = {
          ...{ x: on.values(1, rows, K), weight: on.values(K ** -0.5, N, K), bias: hasBias ? on.values(1, N) : null },
          lora: isAdapted ? adaptersOf(on, columns, rows) : null,
        };
        const [y, h, want] = [on.take(device.compute, rows, N), ...range(2).map(() => on.take(device.compute, rows, N / 2))];
        fewRowsForward(device, { ...product, y: y!, residual: null });
        swigluForward(device, { gateUp: y!, h: want! });
        fewRowsSwiglu(device, { ...product, y: y!, h: h! });
        const of = `${rows} rows, seed ${seed}`;
        expect(Buffer.from(await device.read(h!)).equals(Buffer.from(await device.read(want!))), of).toBe(true);
      }
  });

  test("the norm of a sum with its residual, a row as it is alone", async () => {
    for (const N of [72, 1032])
      for (const isAdapted of [true, false]) {
        using device = open();
        device.reserveScratch(ROOM);
        const seed = Math.floor(1e9 * Math.random());
        const on = opened(device, new Rng(seed));
        const rows = 150;
        const [x, residual] = [on.values(1, rows, K), on.values(1, rows, N)];
        const product = { weight: on.values(K ** -0.5, N, K), bias: isAdapted ? null : on.values(1, N) };
        const lora = isAdapted ? adaptersOf(on, [N], rows) : null;
        const [norm, eps] = [on.floats("f32", 1, N), 1e-5];
        const width = N * bytesOf(device.compute);
        /** y and h of rows `from` .. `from + count` - 1. */
        const run = async (from: number, count: number) => {
          const [y, h] = range(2).map(() => on.take(device.compute, count, N)) as [Tensor, Tensor];
          const part = (t: Tensor) => rowsFrom(t, from, count);
          const of = { x: part(x), ...product, lora: lora && { ...lora, rowAdapter: part(lora.rowAdapter) } };
          fewRowsNormed(device, { ...of, residual: part(residual), y, norm, h, rstd: on.take("f32", count), eps });
          return [await device.read(y), await device.read(h)] as const;
        };
        const all = await run(0, rows);
        const [y, h] = range(2).map(() => on.take(device.compute, rows, N)) as [Tensor, Tensor];
        fewRowsForward(device, { x, ...product, lora, residual, y });
        fewRowsNorm(device, { x: y, weight: norm, residual: null, y: h, rstd: on.take("f32", rows), eps });
        const want = [await device.read(y), await device.read(h)];
        const numbers = (bytes: Uint8Array) => toF32(bytes, device.compute);
        for (const i of [0, 1]) {
          const share = apart(numbers(all[i]!), numbers(want[i]!));
          expect(share, `seed ${seed}`).toBeLessThan(device.compute === "f32" ? 1e-6 : 2 ** -9);
        }
        if (device.kind === "cpu") continue; // whose sums depend on how many rows there are
        for (const [from, count] of [
          [0, 1],
          [149, 1],
          [37, 5],
          [20, 64],
        ] as const) {
          const few = await run(from, count);
          for (const i of [0, 1]) {
            const own = all[i]!.subarray(from * width, (from + count) * width);
            expect(Buffer.from(few[i]!).equals(Buffer.from(own)), `rows from ${from}, seed ${seed}`).toBe(true);
          }
        }
      }
  });

  test.each([
    { heads: 4, kvHeads: 2, headDim: 64, rotated: 64, norm: false, isOne: false },
    { heads: 3, kvHeads: 1, headDim: 128, rotated: 128, norm: true, isOne: false },
    { heads: 2, kvHeads: 2, headDim: 24, rotated: 16, norm: false, isOne: true },
    { heads: 2, kvHeads: 1, headDim: 40, rotated: 40, norm: true, isOne: false },
    { heads: 2, kvHeads: 1, headDim: 256, rotated: 128, norm: false, isOne: false },
  ])("rotated heads of q and k, kept: %o", async ({ norm, isOne, ...of }) => {
    const { heads, kvHeads, headDim, rotated } = of;
    const columns = [heads, kvHeads, kvHeads].map((count) => count * headDim);
    const N = sum(columns);
    for (const rows of [1, 21, 150]) {
      using device = open();
      device.reserveScratch(ROOM);
      const seed = Math.floor(1e9 * Math.random());
      const rng = new Rng(seed);
      const on = opened(device, rng);
      const product = {
        ...{ x: on.values(1, rows, K), weight: on.values(K ** -0.5, N, K), bias: isOne ? on.values(1, N) : null },
        lora: adaptersOf(on, isOne ? [N] : columns, rows),
      };
      const positions = on.put(
        "i32",
        Int32Array.from({ length: rows }, () => rng.below(40)),
        rows,
      );
      const scales = { queryScale: isOne ? on.floats("f32", 1, 40) : null, eps: 1e-5 };
      const angles = { cos: on.floats("f32", 1, 40, rotated / 2), sin: on.floats("f32", 1, 40, rotated / 2), ...scales };
      const [qWeight, kWeight] = range(2).map(() => (norm ? on.floats("f32", 1, headDim) : null));
      const rotation = { positions, ...angles, qWeight: qWeight!, kWeight: kWeight!, ...of };
      const pages = on.put("i32", Int32Array.from(range(8).map((i) => (5 * i + 3) % 8)), 8);
      const places = on.put(
        "i32",
        Int32Array.from({ length: rows }, (_, m) => (m === 5 ? -1 : (m * 67) % (8 * PAGE))),
        rows,
      );
      const caches = range(2).map(() =>
        on.put(device.compute, new Float32Array(8 * PAGE * 2 * kvHeads * headDim), 8 * PAGE, 2 * kvHeads * headDim),
      );
      const [y, want, out] = range(3).map(() => on.take(device.compute, rows, N));
      fewRowsForward(device, { ...product, y: y!, residual: null });
      ropeForward(device, { ...rotation, qkv: y!, out: want! });
      cacheWrite(device, { qkv: want!, places, pages, cache: caches[0]!, ...of });
      fewRowsRope(device, { ...product, ...rotation, places, pages, cache: caches[1]!, y: norm ? y! : out!, out: out! });
      const message = `${rows} rows, seed ${seed}`;
      const [kept, keptWant] = [await device.read(caches[1]!), await device.read(caches[0]!)];
      const rowBytes = N * bytesOf(device.compute);
      const heading = heads * headDim * bytesOf(device.compute);
      const queries = async (of: Tensor) => {
        const all = Buffer.from(await device.read(of));
        return Buffer.concat(range(rows).map((m) => all.subarray(m * rowBytes, m * rowBytes + heading)));
      };
      const pairs = [
        [Buffer.from(kept), Buffer.from(keptWant)],
        [await queries(out!), await queries(want!)],
      ] as const;
      for (const [found, wanted] of pairs)
        if (norm) expect(apart(toF32(found, device.compute), toF32(wanted, device.compute)), message).toBeLessThan(tolerance);
        else expect(found.equals(wanted), message).toBe(true);
    }
  });
}
