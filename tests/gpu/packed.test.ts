// Frozen weights in fewer bits on a GPU: the bytes of the cpu device, which are bitsandbytes's (tests/cpu/packed.test.ts).

import { expect, test } from "bun:test";
import type { PackedFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Device } from "../../src/device/device.ts";
import { NF4_BLOCK, type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { dequantise, quantise } from "../../src/ops/packed.ts";
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
  device.write(memory, new Uint8Array(bytes)); // what lies between the parts is nobody's
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
});
