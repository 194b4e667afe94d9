// The cpu device as kernels see it: products of matrices over OpenBLAS, scratch, and typed windows on its memory.

import { openBlas } from "../../../ffi/blas.ts";
import { hostView } from "../../../ffi/memory.ts";
import { base, openNative } from "../../../ffi/native.ts";
import { assetPath } from "../../base/assets.ts";
import { environment } from "../../base/env.ts";
import { invariant } from "../../base/errors.ts";
import { requireProcessor, usableCores } from "../../base/machine.ts";
import { sizeOf } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import { CPU_ROW_TILE, OPENBLAS_ROW_TILE } from "../tile.ts";

/** A matrix in place: the address of its first element and the distance between its rows, in elements. */
export type Matrix = { readonly ptr: number; readonly ld: number };

/** Whether products are to be OpenBLAS's, of a processor that is named. */
export const asksForOpenBlas = (): boolean => environment("MLORA_BLAS_CORE") !== undefined;

export type Host = ReturnType<typeof openHost>;

/**
 * Opens both libraries; `threads` threads work, OpenBLAS computes in the thread that calls it. `scratch` gives grow-only memory
 * for what a kernel needs while it runs. The row tile is the smallest, unless a multiple of it is asked for. Throws what
 * `openLibrary` throws.
 */
export function openHost(threads: number, scratch: (bytes: number) => number, asked?: number) {
  requireProcessor(); // before an instruction that it may lack
  const openblas = openBlas(assetPath("libscipy_openblas.so"));
  openNative();
  const gemm = base.native_gemm(asksForOpenBlas() ? 0 : 1) === 1;
  const rowTile = asked ?? (gemm ? CPU_ROW_TILE : OPENBLAS_ROW_TILE);
  invariant(rowTile % (gemm ? CPU_ROW_TILE : OPENBLAS_ROW_TILE) === 0, "a row tile that products on this processor allow");
  const sgemmPtr = openblas.scipy_cblas_sgemm.ptr;
  return {
    threads: base.native_threads(threads, usableCores()),
    cores: usableCores(),
    sgemmPtr,
    rowTile,
    scratch,
    /** Whether products are ours (ffi/native/gemm.c), which sum an element alike in products of all sizes; else OpenBLAS's. */
    gemm,
    /** Whether the processor has what ffi/native/gemm_bf16.c is made of. */
    multipliesBf16: base.native_bf16() === 1,
    /** Whether it does so by AMX (gemm_amx.c). */
    multipliesByAmx: base.native_amx(1) === 1,
    /** c[m, n] = alpha op(a) op(b) + beta c, where op transposes: a is [m, k] or, transposed, [k, m]; b likewise. */
    product(
      [m, n, k]: readonly [number, number, number],
      a: Matrix,
      transposeA: boolean,
      b: Matrix,
      transposeB: boolean,
      c: Matrix,
      alpha = 1,
      beta = 0,
    ): void {
      const [ta, tb] = [transposeA ? 1 : 0, transposeB ? 1 : 0];
      base.product(sgemmPtr, ta, tb, m, n, k, alpha, a.ptr, a.ld, b.ptr, b.ld, beta, c.ptr, c.ld);
    },
  };
}

/** The values of an i32 tensor, in place. */
export const ints = (t: Tensor): Int32Array => new Int32Array(hostView(t.ptr, sizeOf(t.shape) * 4));
/** The same bits as unsigned numbers. */
export const unsigned = (t: Tensor): Uint32Array => new Uint32Array(hostView(t.ptr, sizeOf(t.shape) * 4));
/** The values of an f32 tensor, in place. */
export const floats = (t: Tensor): Float32Array => new Float32Array(hostView(t.ptr, sizeOf(t.shape) * 4));

/** Of a table with a row for each slot, elements from one row to the next, and from the first to the end of the last. */
const strideOf = ({ shape, stride }: Tensor): number => stride ?? sizeOf(shape.slice(1));
const spanOf = (t: Tensor): number => (t.shape[0]! - 1) * strideOf(t) + sizeOf(t.shape.slice(1));

/** The rows of a table, by slot. */
export function rowsOfInts(t: Tensor): (slot: number) => Int32Array {
  const [values, stride, width] = [new Int32Array(hostView(t.ptr, spanOf(t) * 4)), strideOf(t), sizeOf(t.shape.slice(1))];
  return (slot) => values.subarray(slot * stride, slot * stride + width);
}
export function rowsOfFloats(t: Tensor): (slot: number) => Float32Array {
  const [values, stride, width] = [new Float32Array(hostView(t.ptr, spanOf(t) * 4)), strideOf(t), sizeOf(t.shape.slice(1))];
  return (slot) => values.subarray(slot * stride, slot * stride + width);
}
/** The addresses in a table i64[slots, linears, count]: below 2^48, so each is exact as a number. */
export function addressesIn(t: Tensor): (slot: number, linear: number, which: number) => number {
  const [values, stride, count] = [new BigUint64Array(hostView(t.ptr, spanOf(t) * 8)), strideOf(t), t.shape[2]!];
  return (slot, linear, which) => Number(values[slot * stride + linear * count + which]);
}
