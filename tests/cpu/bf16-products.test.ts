// Products in bf16 on the cpu device (ffi/native/gemm_bf16.c): the sums of rounded factors at all sizes, an element's the same
// in all; and adapters over a base that is multiplied so: the same bits alone, with others and over stages.

import { expect, test } from "bun:test";
import type { WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { openHost } from "../../src/device/cpu/host.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { type PackedWeight, valuesOf } from "../../src/device/packed.ts";
import { roundedBytes } from "../../src/device/scratch.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { packedProduct } from "../../src/ops/packed.ts";
import { crowdTables, expectSame, type Ground, type Trained, train } from "../helpers/crowd.ts";
import { needs } from "../helpers/needs.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const rounded = (values: Float32Array) => toF32(new Uint8Array(toBf16(values).buffer), "bf16");

needs("bf16")("products in bf16", () => {
  const rng = new Rng(11);
  const random = (size: number) => Float32Array.from({ length: size }, () => rng.uniform() - 0.5);

  /** A device, a weight [rows, columns] of random values that bf16 has, and what multiplies by it. */
  function opened(threads: number, rows: number, columns: number, values = rounded(random(rows * columns))) {
    const device = new CpuDevice(threads);
    const host = openHost(threads, (bytes) => {
      device.reserveScratch(bytes);
      return device.allocate(bytes, "a test");
    });
    const ptr = device.allocate(rows * columns * 2, "a test");
    const weight: PackedWeight = { ptr, format: "bf16-products", shape: [rows, columns], firstRow: [0, rows] };
    device.write(valuesOf(weight), toBf16(values));
    const matrix = (of: Float32Array, ld: number) => {
      const tensor = { ptr: device.allocate(of.byteLength, "a test"), dtype: "f32", shape: [of.length] } as const;
      device.write(tensor, of);
      return { ptr: tensor.ptr, ld, read: async () => new Float32Array((await device.read(tensor)).buffer) };
    };
    return { device, host, weight, values, matrix };
  }

  // Beyond 480 rows and 6912 terms of a row a product is done in parts; odd depths end in half a pair.
  const SIZES = [
    [1, 1, 1],
    [3, 17, 5],
    [24, 48, 16],
    [37, 100, 193],
    [9, 33, 777],
    [481, 50, 65],
    [26, 19, 6917],
  ] as const;
  for (const [m, n, k] of SIZES)
    for (const transposed of [true, false])
      test(`${m} x ${n} x ${k}${transposed ? ", the weight transposed" : ""}, near float64`, async () => {
        const { device, host, weight, values, matrix } = opened(2, transposed ? n : k, transposed ? k : n);
        const [a, before] = [random(m * (k + 3)), random(m * (n + 2))];
        const [from, factors] = [matrix(a, k + 3), rounded(a)];
        for (const beta of [0, 1]) {
          const to = matrix(beta === 0 ? new Float32Array(before.length).fill(Number.NaN) : before, n + 2);
          packedProduct(host, [m, n, k], from, weight, transposed, to, beta);
          const after = await to.read();
          let worst = 0;
          for (const i of range(m)) {
            for (const j of range(n)) {
              let [sum, size] = [beta * before[i * (n + 2) + j]!, Math.abs(before[i * (n + 2) + j]!)];
              for (const l of range(k)) {
                const term = factors[i * (k + 3) + l]! * values[transposed ? j * k + l : l * n + j]!;
                sum += term;
                size += Math.abs(term);
              }
              worst = Math.max(worst, Math.abs(after[i * (n + 2) + j]! - sum) / size); // a NaN stays
            }
            const beyond = [...after.subarray(i * (n + 2) + n, (i + 1) * (n + 2))];
            expect(beyond).toEqual(
              beta === 0 ? [Number.NaN, Number.NaN] : [...before.subarray(i * (n + 2) + n, (i + 1) * (n + 2))],
            );
          }
          expect(worst).toBeLessThan(4e-7); // a few roundings of f32
        }
        device[Symbol.dispose]();
      });

  test("an element has the same bits whatever rows are multiplied with it, on one thread and on two", async () => {
    const [m, n, k] = [530, 170, 6500];
    for (const transposed of [true, false]) {
      const [rows, columns] = transposed ? [n, k] : [k, n];
      const [a, values] = [random(m * k), rounded(random(rows * columns))];
      const found: Float32Array[] = [];
      for (const threads of [1, 2]) {
        const { device, host, weight, matrix } = opened(threads, rows, columns, values);
        const [from, whole] = [matrix(a, k), matrix(new Float32Array(m * n), n)];
        packedProduct(host, [m, n, k], from, weight, transposed, whole, 0);
        const expected = await whole.read();
        found.push(expected);
        for (const [row, count] of [
          [0, 1],
          [5, 90],
          [479, 3],
          [24, 506],
        ] as const) {
          const part = matrix(new Float32Array(count * n), n);
          packedProduct(host, [count, n, k], { ptr: from.ptr + 4 * row * k, ld: k }, weight, transposed, part, 0);
          expect(await part.read()).toEqual(expected.subarray(row * n, (row + count) * n));
        }
        device[Symbol.dispose]();
      }
      expect(found[1]).toEqual(found[0]!);
    }
  });

  test("infinite and not a number stay so in their own rows", async () => {
    const [m, n, k] = [30, 20, 40];
    const { device, host, weight, matrix } = opened(1, n, k);
    const a = random(m * k);
    a[3 * k + 7] = Number.NaN;
    a[5 * k + 1] = Number.POSITIVE_INFINITY;
    const to = matrix(new Float32Array(m * n), n);
    packedProduct(host, [m, n, k], matrix(a, k), weight, true, to, 0);
    const after = await to.read();
    for (const row of range(m)) {
      const own = [...after.subarray(row * n, (row + 1) * n)];
      expect(own.every(Number.isFinite)).toBe(row !== 3 && row !== 5);
      if (row === 3) expect(own.every(Number.isNaN)).toBe(true);
    }
    device[Symbol.dispose]();
  });

  test("what is rounded at a time has a bound", () => {
    expect(roundedBytes(7, 33)).toBe((7 + 15) * 64 * 2);
    expect(roundedBytes(100_000, 1_000_000)).toBe(495 * 6912 * 2);
  });

  const families = { ...tinyFamilies, mixtral: sparseFamilies["mixtral"]!, gemma4: sparseFamilies["gemma4"]! };
  const ground = (family: string, format: WeightFormat = "bf16-products"): Ground => ({
    ...{ spec: families[family as "mixtral"], open: () => new CpuDevice(2), passRows: 160, tables: crowdTables },
    format,
  });

  const apart = (got: Trained, want: Trained, step: number): number =>
    Math.abs(got.losses[step]! - want.losses[step]!) / Math.max(1, Math.abs(want.losses[step]!));

  test("every family: other adapters change nothing, and losses are near those of fp32", async () => {
    for (const family of Object.keys(families)) {
      const who = [0, 1, 2, 6, 7];
      const everyone = await train(who, ground(family));
      const alone = await train([2], ground(family));
      expectSame(everyone.get(2)!, alone.get(2)!);
      const exact = await train(who, ground(family, "dense"));
      for (const i of who) {
        const [first, second] = [0, 1].map((step) => apart(everyone.get(i)!, exact.get(i)!, step)) as [number, number];
        expect(first, `${family}, ${i}`).toBeGreaterThan(0); // else nothing was rounded
        expect(first, `${family}, ${i}`).toBeLessThan(0.02);
        expect(second, `${family}, ${i}`).toBeLessThan(0.2); // after a step that is large
      }
    }
  });

  test("nor does a second stage, nor another packing", async () => {
    const everyone = await train(range(8), ground("qwen3"));
    const two = await train([1, 2, 5, 7], ground("qwen3"), [1]);
    const packed = await train(range(8), { ...ground("qwen3"), passRows: 96, chunkTiles: 3 });
    for (const i of [1, 2, 5, 7]) {
      expectSame(everyone.get(i)!, (await train([i], ground("qwen3"))).get(i)!);
      expectSame(two.get(i)!, everyone.get(i)!);
      expectSame(packed.get(i)!, everyone.get(i)!);
    }
  });
});
