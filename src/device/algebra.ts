// Products and eigenvectors in doubles on the host, by OpenBLAS and its LAPACK: for what is computed once, before training.

import { openBlas } from "../../ffi/blas.ts";
import { fixedBytes } from "../../ffi/memory.ts";
import { assetPath } from "../base/assets.ts";
import { invariant } from "../base/errors.ts";
import { range } from "../base/shape.ts";

let opened: ReturnType<typeof openBlas> | null = null;
const library = () => {
  opened ??= openBlas(assetPath("libscipy_openblas.so"));
  return opened;
};

const [ROW_MAJOR, PLAIN, TURNED] = [101, 111, 112];
const letter = (text: string): number => text.charCodeAt(0);

/** A matrix of rows one after another. */
export type Matrix = { readonly rows: number; readonly columns: number; readonly values: Float64Array };

export const matrix = (rows: number, columns: number, values = new Float64Array(rows * columns)): Matrix => {
  invariant(values.length === rows * columns, `${values.length} values for [${rows}, ${columns}]`);
  return { rows, columns, values };
};

/** a b, of which either may be turned first. */
export function multiply(a: Matrix, b: Matrix, { turnA = false, turnB = false } = {}): Matrix {
  const [m, k] = turnA ? [a.columns, a.rows] : [a.rows, a.columns];
  const [inner, n] = turnB ? [b.columns, b.rows] : [b.rows, b.columns];
  invariant(k === inner, `[${m}, ${k}] times [${inner}, ${n}]`);
  const c = matrix(m, n);
  const [ta, tb] = [turnA ? TURNED : PLAIN, turnB ? TURNED : PLAIN];
  library().scipy_cblas_dgemm(ROW_MAJOR, ta, tb, m, n, k, 1, a.values, a.columns, b.values, b.columns, 0, c.values, n);
  return c;
}

/**
 * The largest `count` eigenvalues of a symmetric matrix, which is overwritten, with their eigenvectors as columns; the largest
 * first.
 */
export function largestEigen(
  { rows: n, values }: Matrix,
  count: number,
): { readonly values: Float64Array; readonly vectors: Matrix } {
  const [found, z] = [new Float64Array(n), new Float64Array(n * count)];
  const counted = new Int32Array(fixedBytes(4).buffer);
  const support = new Int32Array(Math.max(64, 2 * n));
  const [first, last] = [n - count + 1, n];
  const how = [ROW_MAJOR, letter("V"), letter("I"), letter("U"), n, values, n, 0, 0, first, last, 0] as const;
  const failed = library().scipy_LAPACKE_dsyevr(...how, counted, found, z, count, support);
  invariant(failed === 0 && counted[0] === count, `dsyevr: ${failed}, ${counted[0]} of ${count} eigenvalues`);
  const vectors = matrix(n, count);
  for (let i = 0; i < n; i++) for (let j = 0; j < count; j++) vectors.values[i * count + j] = z[i * count + count - 1 - j]!;
  return { values: found.slice(0, count).reverse(), vectors };
}

/**
 * Columns at right angles, of length 1, that span what these span: Gram and Schmidt, twice, for once leaves what rounding
 * spoils.
 */
export function orthonormal({ rows, columns, values }: Matrix): Matrix {
  const basis = range(columns).map((j) => Float64Array.from({ length: rows }, (_, i) => values[i * columns + j]!));
  for (const [j, column] of basis.entries()) {
    for (let round = 0; round < 2; round++)
      for (const other of basis.slice(0, j)) {
        const along = dot(column, other);
        for (let i = 0; i < rows; i++) column[i]! -= along * other[i]!;
      }
    const length = Math.sqrt(dot(column, column));
    for (let i = 0; i < rows; i++) column[i] = length > 0 ? column[i]! / length : 0;
  }
  const out = matrix(rows, columns);
  for (const [j, column] of basis.entries()) for (let i = 0; i < rows; i++) out.values[i * columns + j] = column[i]!;
  return out;
}

function dot(a: Float64Array, b: Float64Array): number {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i]! * b[i]!;
  return total;
}
