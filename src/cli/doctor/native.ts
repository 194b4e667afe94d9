// Whether the native parts work here: each is opened and made to do a little of its work.

import { openBlas } from "../../../ffi/blas.ts";
import { addressOf } from "../../../ffi/memory.ts";
import { base, F, I, native, openNative, P } from "../../../ffi/native.ts";
import { assetPath } from "../../base/assets.ts";
import { RunError } from "../../base/errors.ts";
import { Rng } from "../../base/rng.ts";
import { alignUp } from "../../base/shape.ts";

const inBf16 = native({ product_bf16: { args: [I, I, I, I, P, I, P, F, P, I, P], returns: "void" } });

export type Blas = {
  /** "0.3.34" */
  readonly version: string;
  /** The processor that it computes for: "SkylakeX". */
  readonly core: string;
};

/** Opens OpenBLAS and our kernels and has each of them compute a product, as a run does. Throws a RunError. */
export function checkProducts(): Blas {
  const openblas = openBlas(assetPath("libscipy_openblas.so"));
  openNative();
  const [m, n, k] = [37, 29, 53]; // no multiple of any tile
  const rng = new Rng(1);
  const random = (length: number) => Float32Array.from({ length }, () => rng.below(128) / 128 - 0.5); // exact in bf16, too
  const [a, b, c] = [random(m * k), random(n * k), new Float32Array(new ArrayBuffer(4 * m * n))];
  for (const own of [0, 1]) {
    base.native_gemm(own);
    base.product(openblas.scipy_cblas_sgemm.ptr, 0, 1, m, n, k, 1, a, k, b, k, 0, c, n);
    const worst = worstError(a, b, c, [m, n, k]);
    if (!(worst < 1e-5)) throw new RunError("doctor.product", `a product of matrices is wrong by ${worst}`);
  }
  if (base.native_bf16() === 1) checkInBf16(a, b, c, [m, n, k]);
  const [, version = "of unknown version"] = /OpenBLAS (\d+\.\d+\.\d+)/.exec(openblas.scipy_openblas_get_config() ?? "") ?? [];
  return { version, core: openblas.scipy_openblas_get_corename() ?? "unknown" };
}

/** The same over b in bf16, of which the values here are. */
function checkInBf16(a: Float32Array, b: Float32Array, c: Float32Array, [m, n, k]: readonly [number, number, number]): void {
  const codes = Uint16Array.from(new Uint32Array(b.buffer), (bits) => bits >>> 16);
  const weight = BigInt64Array.from([1, k, 1, 0, n, addressOf(codes), 0, 0, 0, 0].map(BigInt)); // ffi/native/packed.h
  const scratch = new Uint8Array(new ArrayBuffer(2 * m * alignUp(k, 32)));
  inBf16.product_bf16(1, m, n, k, a, k, weight, 0, c, n, scratch);
  const worst = worstError(a, b, c, [m, n, k]);
  if (!(worst < 1e-5)) throw new RunError("doctor.product", `a product of matrices in bf16 is wrong by ${worst}`);
}

/** The largest distance of c[m, n] from a[m, k] b[n, k] transposed, which is computed in doubles. */
function worstError(a: Float32Array, b: Float32Array, c: Float32Array, [m, n, k]: readonly [number, number, number]): number {
  let worst = 0;
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += a[i * k + l]! * b[j * k + l]!;
      worst = Math.max(worst, Math.abs(c[i * n + j]! - sum)); // a NaN stays
    }
  return worst;
}
