// Tensors of a test on any device: memory that is NaN until it is written, and values that are put there.

import { bytesOf } from "../../src/base/dtype.ts";
import { sizeOf } from "../../src/base/shape.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { toBf16 } from "../../src/files/convert.ts";

/** `take` of NaN, `put` of values, which become bf16 where that is asked for; both go with the device. */
export function tensorsOn(device: Device) {
  const take = (dtype: Tensor["dtype"], ...shape: number[]): Tensor => {
    const to = { ptr: device.allocate(Math.max(256, sizeOf(shape) * bytesOf(dtype)), "a test"), dtype, shape };
    device.write(to, new Uint8Array(sizeOf(shape) * bytesOf(dtype)).fill(0xff)); // NaN
    return to;
  };
  const put = (dtype: Tensor["dtype"], data: Float32Array | Int32Array | BigInt64Array, ...shape: number[]): Tensor => {
    const to = take(dtype, ...shape);
    device.write(to, dtype === "bf16" ? toBf16(data as Float32Array) : data);
    return to;
  };
  return { take, put };
}
