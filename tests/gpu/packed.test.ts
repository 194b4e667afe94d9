// Frozen weights in fewer bits on a GPU: the bytes of the cpu device, which are bitsandbytes's (tests/cpu/packed.test.ts).

import { expect, test } from "bun:test";
import type { PackedFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Device } from "../../src/device/device.ts";
import { NF4_BLOCK, type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { randomFill } from "../../src/ops/fill.ts";
import { linearBackward, linearForward } from "../../src/ops/linear.ts";
import { dequantise, quantise, roundedCodes, scaleRows } from "../../src/ops/packed.ts";
import { needs } from "../helpers/needs.ts";

const SIZES: readonly (readonly [rows: readonly number[], columns: number])[] = [
  [[72, 24, 40], 200],
  [[3], 8],
  [[2048, 512, 512], 1024],
];

/** The packed bytes of values that are exact in bf16, and what they stand for. */
async function packed(device: Device, format: PackedFormat, rows: readonly number[], columns: number, bits: Uint16Array) {
  const firstRow = [0, ...rows.map((_, g) => rows.slice(0, g + 1).reduce((a, b) => a + b))];
  const layout = { format, shape: [firstRow.at(-1)!, columns] as const, firstRow };
  const { bytes } = partsOf(layout);
  using arena = new Arena(device, bytes + 10 * bits.length + 4096, "a test");
  const memory = arena.tensor("u8", bytes);
  const weight: PackedWeight = { ...layout, ptr: memory.ptr };
  const absmax = arena.tensor("f32", Math.ceil(bits.length / NF4_BLOCK));
  const [from, out] = [arena.tensor(device.compute, ...layout.shape), arena.tensor(device.compute, ...layout.shape)];
  const wide = Uint32Array.from(bits, (half) => half << 16);
  device.write(from, device.compute === "f32" ? wide : bits);
  device.write(memory, new Uint8Array(bytes)); // what lies between the parts is in no use
  device.write(out, new Uint8Array(out.shape[0]! * columns * (device.compute === "f32" ? 4 : 2)).fill(255));
  for (const [linear, count] of rows.entries()) {
    const ptr = from.ptr + firstRow[linear]! * columns * (device.compute === "f32" ? 4 : 2);
    quantise(device, { from: { ...from, ptr, shape: [count, columns] }, weight, linear, absmax });
  }
  dequantise(device, { weight, out });
  const back = await device.read(out);
  const values =
    device.compute === "f32"
      ? new Float32Array(back.buffer)
      : new Float32Array(Uint32Array.from(new Uint16Array(back.buffer), (half) => half << 16).buffer);
  return { bytes: await device.read(memory), values };
}

needs("gpu")("packed weights on the GPU", () => {
  for (const format of ["int8", "nf4"] as const)
    for (const compute of ["f32", "bf16"] as const)
      test(`${format} from ${compute}: the bytes of the cpu device, and its values`, async () => {
        using cpu = new CpuDevice();
        using gpu = new CudaDevice(compute);
        const rng = new Rng(6);
        for (const [rows, columns] of SIZES) {
          const values = Float32Array.from({ length: rows.reduce((a, b) => a + b) * columns }, () => 0.03 * rng.normal());
          values.fill(0, 0, columns);
          const bits = Uint16Array.from(new Uint32Array(values.buffer), (word) => word >>> 16);
          const [want, got] = [await packed(cpu, format, rows, columns, bits), await packed(gpu, format, rows, columns, bits)];
          expect(Buffer.from(got.bytes).equals(want.bytes), `${rows} x ${columns}`).toBe(true);
          const rounding = compute === "f32" ? 3e-7 : 5e-3;
          for (const [i, value] of want.values.entries())
            if (!(Math.abs(got.values[i]! - value) <= rounding * Math.max(Math.abs(value), 1e-3)))
              throw new Error(`value ${i} of ${rows} x ${columns}: ${got.values[i]}, ${value} on the cpu`);
        }
      });

  test("products of nf4-fp8 are those of its codes in fp8, bit for bit, and near those of nf4", async () => {
    using gpu = new CudaDevice("bf16");
    const [rows, K, linears] = [256, 448, [208, 48, 64]] as const;
    const [N, firstRow] = [320, [0, 208, 256, 320]];
    using arena = new Arena(gpu, 64 * (N * K + rows * (K + N)) + 65536, "a test");
    gpu.reserveScratch(2 * (N * K + rows * K) + 65536);
    const held = (format: PackedFormat): PackedWeight => {
      const layout = { format, shape: [N, K] as const, firstRow };
      return { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    };
    const of = { nf4: held("nf4"), both: held("nf4-fp8"), fp8: held("fp8") };
    const [from, dense] = [arena.tensor("bf16", N, K), arena.tensor("bf16", N, K)];
    const absmax = arena.tensor("f32", (N * K) / NF4_BLOCK);
    randomFill(gpu, { out: from, seed: 3, scale: 0.02 });
    for (const [linear, count] of linears.entries()) {
      const part = { ...from, ptr: from.ptr + firstRow[linear]! * K * 2, shape: [count, K] };
      for (const weight of [of.nf4, of.both]) quantise(gpu, { from: part, weight, linear, absmax });
      scaleRows(gpu, { weight: of.both, linear });
    }
    const [own, parts] = [partsOf(of.both), partsOf(of.fp8)];
    const bytes = (ptr: number, count: number) => ({ ptr, dtype: "u8" as const, shape: [count] });
    gpu.write(bytes(of.fp8.ptr + parts.scale, N), await gpu.read(bytes(of.both.ptr + own.scale, N)));
    roundedCodes(gpu, of.both, of.fp8.ptr + parts.codes, false);
    roundedCodes(gpu, of.both, of.fp8.ptr + parts.transposed, true);
    const codes = await gpu.read(bytes(of.fp8.ptr + parts.codes, N * K));
    const turned = await gpu.read(bytes(of.fp8.ptr + parts.transposed, N * K));
    for (let n = 0; n < N; n++)
      for (let k = 0; k < K; k++) if (turned[k * N + n] !== codes[n * K + k]) throw new Error(`${n}, ${k}`);
    dequantise(gpu, { weight: of.both, out: dense });
    const values = await gpu.read(dense);
    dequantise(gpu, { weight: of.nf4, out: dense });
    expect(Buffer.from(values).equals(await gpu.read(dense))).toBe(true);
    const [x, dy] = [arena.tensor("bf16", rows, K), arena.tensor("bf16", rows, N)];
    randomFill(gpu, { out: x, seed: 4, scale: 1 });
    randomFill(gpu, { out: dy, seed: 5, scale: 1 });
    const products = async (weight: PackedWeight) => {
      const [y, dx] = [arena.tensor("bf16", rows, N), arena.tensor("bf16", rows, K)];
      for (const to of [y, dx]) gpu.write(to, new Uint8Array(2 * to.shape[0]! * to.shape[1]!).fill(255));
      linearForward(gpu, { x, weight, bias: null, residual: null, y, lora: null });
      linearBackward(gpu, { dy, weight, dx, lora: null });
      return [await gpu.read(y), await gpu.read(dx)] as const;
    };
    const [got, same, plain] = [await products(of.both), await products(of.fp8), await products(of.nf4)];
    for (const [i, depth] of [K, N].entries()) {
      expect(Buffer.from(got[i]!).equals(same[i]!)).toBe(true);
      const [a, b] = [got[i]!, plain[i]!].map(
        (of) =>
          new Float32Array(
            Uint32Array.from(new Uint16Array(of.buffer, of.byteOffset, of.byteLength / 2), (half) => half << 16).buffer,
          ),
      );
      const [off, all] = a!.reduce(([d, s], v, j) => [d + (v - b![j]!) ** 2, s + b![j]! ** 2], [0, 0]);
      expect(Math.sqrt(off / all), `${depth} deep`).toBeLessThan(0.05); // two roundings to 4 bits: 0.037
    }
  });

  test("fp8 products are as exact as their sums where e4m3 loses nothing: both of them, compared with sums in f64", async () => {
    using gpu = new CudaDevice("bf16");
    const [rows, K, linears] = [256, 400, [208, 48, 64]] as const;
    const firstRow = [0, 208, 256, 320];
    const N = 320;
    const rng = new Rng(12);
    // Values of e4m3 with few bits, and a 448 in each row: the scales are 1, and rounding loses nothing.
    const exact = (n: number, columns: number) =>
      Float32Array.from({ length: n * columns }, (_, i) =>
        i % columns === 5 ? 448 : (rng.below(2) === 0 ? 1 : -1) * (8 + rng.below(8)) * 2 ** (rng.below(9) - 6),
      );
    const layout = { format: "fp8", shape: [N, K] as const, firstRow } as const;
    using arena = new Arena(gpu, partsOf(layout).bytes + 4 * (N * K + rows * (K + N)) + 65536, "a test");
    gpu.reserveScratch(rows * K + 65536);
    const weight: PackedWeight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    const [w, x, dy] = [exact(N, K), exact(rows, K), exact(rows, N)];
    const put = (values: Float32Array, ...shape: number[]) => {
      const tensor = arena.tensor("bf16", ...shape);
      gpu.write(
        tensor,
        Uint16Array.from(new Uint32Array(values.buffer), (word) => word >>> 16),
      );
      return tensor;
    };
    const [from, xs, dys] = [put(w, N, K), put(x, rows, K), put(dy, rows, N)];
    for (const [linear, count] of linears.entries())
      quantise(gpu, {
        from: { ...from, ptr: from.ptr + firstRow[linear]! * K * 2, shape: [count, K] },
        weight,
        linear,
        absmax: arena.tensor("f32", 1),
      });
    const [y, dx] = [arena.tensor("bf16", rows, N), arena.tensor("bf16", rows, K)];
    linearForward(gpu, { x: xs, weight, bias: null, residual: null, y, lora: null });
    linearBackward(gpu, { dy: dys, weight, dx, lora: null });
    const valuesOf = async (of: typeof y) =>
      new Float32Array(Uint32Array.from(new Uint16Array((await gpu.read(of)).buffer), (half) => half << 16).buffer);
    const check = (got: Float32Array, width: number, depth: number, a: Float32Array, b: (n: number, k: number) => number) => {
      for (let m = 0; m < rows; m++)
        for (let n = 0; n < width; n++) {
          let [want, most] = [0, 0];
          for (let k = 0; k < depth; k++) {
            const term = a[m * depth + k]! * b(n, k);
            want += term;
            most = Math.max(most, Math.abs(term));
          }
          const off = Math.abs(got[m * width + n]! - want);
          // A result in bf16, and about 14 bits of the largest term kept at each addition.
          if (!(off <= 4e-3 * Math.abs(want) + (depth * most) / 2 ** 14))
            throw new Error(`${m}, ${n}: ${got[m * width + n]}, not ${want}`);
        }
    };
    check(await valuesOf(y), N, K, x, (n, k) => w[n * K + k]!);
    check(await valuesOf(dx), K, N, dy, (k, n) => w[n * K + k]!);
  });
});
