// Between element types, on the bytes of tensors.

import { native } from "../../ffi/factors.ts";
import type { DType } from "../base/dtype.ts";

/** f32 to bf16, to nearest even; NaN stays NaN. Into `out`, of as many elements or more, where that is given. */
export function toBf16(
  values: Float32Array,
  out = new Uint16Array(new ArrayBuffer(2 * values.length)),
): Uint16Array<ArrayBuffer> {
  const { c, threads } = native();
  c.factor_bf16(threads, values, out, values.length);
  return out.subarray(0, values.length);
}

/** The bytes of a tensor as f32; they need not be aligned. */
export function toF32(bytes: Uint8Array, dtype: DType): Float32Array<ArrayBuffer> {
  if (dtype === "f32") return new Float32Array(aligned(bytes));
  if (dtype === "bf16") {
    const from = new Uint16Array(aligned(bytes));
    const to = new Uint32Array(from.length);
    for (let i = 0; i < from.length; i++) to[i] = from[i]! << 16;
    return new Float32Array(to.buffer);
  }
  if (dtype === "f16") return Float32Array.from(new Float16Array(aligned(bytes)));
  throw new Error(`no f32 in ${dtype}`);
}

const aligned = (bytes: Uint8Array): ArrayBuffer =>
  bytes.byteOffset % 4 === 0 && bytes.byteOffset === 0 && bytes.byteLength === bytes.buffer.byteLength
    ? (bytes.buffer as ArrayBuffer)
    : new Uint8Array(bytes).buffer;

/** Whether all are finite numbers. */
export function areFinite(values: Float32Array): boolean {
  const { c, threads } = native();
  return c.factor_finite(threads, values, values.length) === 1;
}

/** Whether both have the same bits. */
export const sameBits = (a: Float32Array, b: Float32Array): boolean =>
  Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength));
