// What a weight in fewer bits stands for, in float64 from its codes: no rounding of a device is in it.

import type { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { linearOf, MXFP4_BLOCK, NESTED_BLOCK, NF4_BLOCK, type PackedWeight } from "../../src/device/packed.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { dynamicMap } from "../../src/ops/adamw8.ts";

/** QLoRA's values, ascending. */
const NF4 = Float32Array.of(
  ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
  ...[-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
  ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
);
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const DYNAMIC = dynamicMap(true);

function e4m3(code: number): number {
  const [exponent, fraction] = [(code >> 3) & 15, code & 7];
  const size = (fraction + (exponent > 0 ? 8 : 0)) * 2 ** (Math.max(exponent, 1) - 10);
  return (code & 127) === 127 ? Number.NaN : code > 127 ? -size : size;
}

/**
 * f64[N, K]. `roundsBook`: of nf4 the 16 values in bf16, as products in bf16 that look codes up have them; each is then off by
 * a part in 2^9 at most, as is each weight where a block is taken apart and rounded.
 */
export async function packedValues(device: Device, weight: PackedWeight, roundsBook: boolean): Promise<Float64Array> {
  const [N, K] = weight.shape;
  const values = new Float64Array(N * K);
  const read = (ptr: number, dtype: Tensor["dtype"], size: number) => device.read({ ptr, dtype, shape: [size] });
  const floats = async (ptr: number, size: number) => toF32(await read(ptr, "f32", size), "f32");
  const book = roundsBook ? toF32(new Uint8Array(toBf16(NF4).buffer), "bf16") : NF4;
  for (const g of range(weight.firstRow.length - 1)) {
    const { row, rows, codes, scale, absmax, nested, mean, blocks } = linearOf(weight, g);
    const [size, first] = [rows * K, row * K];
    const put = (value: (i: number) => number) => {
      for (let i = 0; i < size; i++) values[first + i] = value(i);
    };
    switch (weight.format) {
      case "int8": {
        const [all, of] = [new Int8Array((await read(codes, "u8", size)).buffer), await floats(scale, rows)];
        put((i) => all[i]! * of[Math.floor(i / K)]!);
        break;
      }
      case "fp8": {
        const [all, of] = [await read(codes, "u8", size), await read(scale, "u8", rows)];
        put((i) => e4m3(all[i]!) * 2 ** (of[Math.floor(i / K)]! - 127));
        break;
      }
      case "mxfp4": {
        const [all, of] = [await read(codes, "u8", size / 2), await read(scale, "u8", size / MXFP4_BLOCK)];
        put((i) => {
          const code = (all[i >> 1]! >> (4 * (i & 1))) & 15;
          return (code > 7 ? -1 : 1) * E2M1[code & 7]! * 2 ** (of[Math.floor(i / MXFP4_BLOCK)]! - 127);
        });
        break;
      }
      case "nf4": {
        const [all, of] = [await read(codes, "u8", size / 2), await read(absmax, "u8", blocks)];
        const [outer, middle] = [await floats(nested, Math.ceil(blocks / NESTED_BLOCK)), (await floats(mean, 1))[0]!];
        put((i) => {
          const block = Math.floor(i / NF4_BLOCK);
          const code = (all[i >> 1]! >> (4 * (1 - (i & 1)))) & 15;
          return book[code]! * (DYNAMIC[of[block]!]! * outer[Math.floor(block / NESTED_BLOCK)]! + middle);
        });
        break;
      }
      default:
        throw new Error(`no codes of ${weight.format}`);
    }
  }
  return values;
}

/** Random codes, and scales that make weights of about a tenth of them: what files of a model hold as mxfp4. */
export function fillMxfp4(device: Device, weight: PackedWeight, rng: Rng): void {
  const { codes, scale } = linearOf(weight, 0);
  const size = sizeOf(weight.shape);
  const bytes = (count: number, from: number, below: number) =>
    Uint8Array.from({ length: count }, () => from + rng.below(below));
  device.write({ ptr: codes, dtype: "u8", shape: [size / 2] }, bytes(size / 2, 0, 256));
  device.write({ ptr: scale, dtype: "u8", shape: [size / MXFP4_BLOCK] }, bytes(size / MXFP4_BLOCK, 121, 4));
}
