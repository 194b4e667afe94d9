// The cpu device's native side: OpenBLAS and our C kernels, opened once, and typed windows on their memory.

import { cpus } from "node:os";
import { blas } from "../../../ffi/blas.ts";
import { hostView } from "../../../ffi/memory.ts";
import { native } from "../../../ffi/native.ts";
import { openLibrary } from "../../../ffi/open.ts";
import { assetPath } from "../../base/assets.ts";
import type { Tensor } from "../device.ts";

const ROW_MAJOR = 101;
const PLAIN = 111;
const TRANSPOSED = 112;

/** A matrix in place: the address of its first element and the distance between its rows, in elements. */
export type Matrix = { readonly ptr: number; readonly ld: number };

export type Host = ReturnType<typeof openHost>;

/** Opens both libraries with `threads` threads each. Throws what `openLibrary` throws. */
export function openHost(threads = cpus().length) {
  const openblas = openLibrary(assetPath("libscipy_openblas.so"), blas);
  const kernels = openLibrary(assetPath("libmlora.so"), native);
  const actual = kernels.native_threads(threads);
  openblas.scipy_openblas_set_num_threads(actual);
  const sgemm = openblas.scipy_cblas_sgemm;
  return {
    kernels,
    threads: actual,
    sgemmPtr: (sgemm as unknown as { readonly ptr: number }).ptr,
    /** Runs `work` with OpenBLAS on one thread, for C that calls it from several. */
    singleThreaded(work: () => void): void {
      openblas.scipy_openblas_set_num_threads(1);
      try {
        work();
      } finally {
        openblas.scipy_openblas_set_num_threads(actual);
      }
    },
    /** c[m, n] = alpha op(a) op(b) + beta c, where op transposes: a is [m, k] or, transposed, [k, m]; b likewise. */
    sgemm(
      [m, n, k]: readonly [number, number, number],
      a: Matrix,
      transposeA: boolean,
      b: Matrix,
      transposeB: boolean,
      c: Matrix,
      alpha = 1,
      beta = 0,
    ): void {
      sgemm(
        ROW_MAJOR,
        transposeA ? TRANSPOSED : PLAIN,
        transposeB ? TRANSPOSED : PLAIN,
        m,
        n,
        k,
        alpha,
        a.ptr,
        a.ld,
        b.ptr,
        b.ld,
        beta,
        c.ptr,
        c.ld,
      );
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

/** A dimension of a tensor whose shape `ops` has checked. */
export const dim = (t: Tensor, i: number): number => t.shape[i] ?? 1;
