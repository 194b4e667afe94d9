// OpenBLAS, as scipy-openblas32 names it (LP64: sizes are 32-bit), and how it is opened.
//
// OpenBLAS takes its kernels and threads from the environment when it is opened. Variables that were set for another program
// must not change ours: OPENBLAS_CORETYPE=Haswell, left in some build machines' environment, halves the speed of products on a
// newer processor. So they are taken away; MLORA_BLAS_CORE is the deliberate way. Threads are ours (ffi/native/parallel.c):
// OpenBLAS computes in the thread that calls it, and starts none.

import { environment } from "../src/base/env.ts";
import { openLibrary, setNativeEnvironment } from "./open.ts";

const I = "i32";

export const blas = {
  /** order, trans a, trans b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc */
  scipy_cblas_sgemm: { args: [I, I, I, I, I, I, "f32", "ptr", I, "ptr", I, "f32", "ptr", I], returns: "void" },
  scipy_cblas_dgemm: { args: [I, I, I, I, I, I, "f64", "ptr", I, "ptr", I, "f64", "ptr", I], returns: "void" },
  /**
   * order, jobz, range, uplo (letters), n, a, lda, vl, vu, il, iu, abstol, m, w, z, ldz, isuppz: eigenvalues il to iu of a
   * symmetric matrix
   */
  scipy_LAPACKE_dsyevr: {
    args: [I, I, I, I, I, "ptr", I, "f64", "f64", I, I, "f64", "ptr", "ptr", "ptr", I, "ptr"],
    returns: I,
  },
  scipy_openblas_set_num_threads: { args: [I], returns: "void" },
  scipy_openblas_get_num_threads: { args: [], returns: I },
  /** "OpenBLAS 0.3.34 ... MAX_THREADS=64" */
  scipy_openblas_get_config: { args: [], returns: "cstring" },
  /** The processor that it computes for: "Haswell", "SkylakeX", "Cooperlake", "Zen" ... */
  scipy_openblas_get_corename: { args: [], returns: "cstring" },
} as const;

/**
 * What it computes for on any 64-bit Arm: its choice for processors with SME is kernels that are empty in this package
 * (findings/openblas-sme-empty-kernels.sh), and one choice is the same bits on all.
 */
const ARM = "NEOVERSEN1";

/** Opens OpenBLAS at an absolute path, on one thread, whatever OPENBLAS_* and OMP_* say. Throws what `openLibrary` throws. */
export function openBlas(path: string) {
  setNativeEnvironment({
    OPENBLAS_CORETYPE: environment("MLORA_BLAS_CORE") ?? (process.arch === "arm64" ? ARM : undefined),
    OPENBLAS_L2_SIZE: undefined,
    OPENBLAS_BLOCK_FACTOR: undefined,
    OPENBLAS_VERBOSE: undefined,
    OPENBLAS_NUM_THREADS: "1",
  });
  return openLibrary(path, blas);
}
