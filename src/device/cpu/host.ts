// The cpu device's native side: OpenBLAS and our C kernels, opened once, and typed windows on their memory.

import { openBlas } from "../../../ffi/blas.ts";
import { hostView } from "../../../ffi/memory.ts";
import { native } from "../../../ffi/native.ts";
import { openLibrary } from "../../../ffi/open.ts";
import { assetPath } from "../../base/assets.ts";
import { requireProcessor, usableCores } from "../../base/machine.ts";
import type { Tensor } from "../device.ts";

/** A matrix in place: the address of its first element and the distance between its rows, in elements. */
export type Matrix = { readonly ptr: number; readonly ld: number };

export type Host = ReturnType<typeof openHost>;

/**
 * Opens both libraries; `threads` threads work, OpenBLAS computes in the thread that calls it. Throws what `openLibrary`
 * throws.
 */
export function openHost(threads: number) {
  requireProcessor(); // before an instruction that it may lack
  const openblas = openBlas(assetPath("libscipy_openblas.so"));
  const kernels = openLibrary(assetPath("libmlora.so"), native);
  const sgemmPtr = openblas.scipy_cblas_sgemm.ptr;
  return {
    kernels,
    threads: kernels.native_threads(threads, usableCores()),
    cores: usableCores(),
    sgemmPtr,
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
      kernels.product(sgemmPtr, ta, tb, m, n, k, alpha, a.ptr, a.ld, b.ptr, b.ld, beta, c.ptr, c.ld);
    },
  };
}

const elements = (t: Tensor): number => t.shape.reduce((a, b) => a * b, 1);

/** The values of an i32 tensor, in place. */
export const ints = (t: Tensor): Int32Array => new Int32Array(hostView(t.ptr, elements(t) * 4));
/** The same bits as unsigned numbers. */
export const unsigned = (t: Tensor): Uint32Array => new Uint32Array(hostView(t.ptr, elements(t) * 4));
/** The values of an f32 tensor, in place. */
export const floats = (t: Tensor): Float32Array => new Float32Array(hostView(t.ptr, elements(t) * 4));

/** Elements from one row of a table to the next. */
export const strideOf = (t: Tensor): number => t.stride ?? elements(t) / dim(t, 0);
const spanOf = (t: Tensor): number => (dim(t, 0) - 1) * strideOf(t) + elements(t) / dim(t, 0);

/** The same of a table whose rows are `strideOf` elements apart. */
export const intRows = (t: Tensor): Int32Array => new Int32Array(hostView(t.ptr, spanOf(t) * 4));
export const floatRows = (t: Tensor): Float32Array => new Float32Array(hostView(t.ptr, spanOf(t) * 4));
/** Addresses: below 2^48, so each is exact as a number. */
export function addressRows(t: Tensor): (slot: number, linear: number, which: number) => number {
  const [values, stride, width] = [new BigUint64Array(hostView(t.ptr, spanOf(t) * 8)), strideOf(t), dim(t, 2)];
  return (slot, linear, which) => Number(values[slot * stride + linear * width + which]);
}

/** A dimension of a tensor whose shape `ops` has checked. */
export const dim = (t: Tensor, i: number): number => t.shape[i] ?? 1;
