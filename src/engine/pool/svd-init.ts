// Factors that begin as a part of the weight: PiSSA (Meng et al. 2024), its largest singular values with their vectors, and
// OLoRA (Buyukakyuz 2024), the first columns of its Q and rows of its R. As in PEFT, B0 A0 is divided by the adapter's
// scale, so that scale B0 A0 is that part.
//
// The weight is shared and unchanged (methods/init.ts), so these factors are both what is trained and what is taken off.

import { invariant } from "../../base/errors.ts";
import { Rng } from "../../base/rng.ts";
import { largestEigen, type Matrix, matrix, multiply, orthonormal } from "../../device/algebra.ts";
import { type Init, roundsOf } from "../../methods/init.ts";

export type Principal = { readonly a: Float32Array; readonly b: Float32Array };

/** A0 [rank, in] and B0 [out, rank] of a weight [out, in]. `seed`: a randomised decomposition begins with it. */
export function svdFactors(init: Init, weight: Matrix, rank: number, scale: number, seed: readonly number[]): Principal {
  invariant(rank <= Math.min(weight.rows, weight.columns), `rank ${rank} of a weight [${weight.rows}, ${weight.columns}]`);
  if (init === "olora") return olora(weight, rank);
  const rounds = roundsOf(init);
  return pissa(rounds === null ? singular(weight, rank) : approximate(weight, rank, rounds, seed), scale);
}

type Singular = { readonly u: Matrix; readonly values: Float64Array; readonly v: Matrix };

/** B0 = U sqrt(S / scale), A0 = sqrt(S / scale) V^T. */
function pissa({ u, values, v }: Singular, scale: number): Principal {
  const rank = values.length;
  const roots = values.map((value) => Math.sqrt(value / scale));
  const b = Float32Array.from(u.values, (value, i) => value * roots[i % rank]!);
  const a = new Float32Array(rank * v.rows);
  for (let i = 0; i < v.rows; i++) for (let r = 0; r < rank; r++) a[r * v.rows + i] = v.values[i * rank + r]! * roots[r]!;
  return { a, b };
}

/** B0 = Q, A0 = R of the first columns; scale B0 A0 is taken off and trained, as PEFT does it. */
function olora(weight: Matrix, rank: number): Principal {
  const first = matrix(weight.rows, rank);
  for (let i = 0; i < weight.rows; i++)
    for (let r = 0; r < rank; r++) first.values[i * rank + r] = weight.values[i * weight.columns + r]!;
  const q = orthonormal(first);
  return { a: Float32Array.from(multiply(q, weight, { turnA: true }).values), b: Float32Array.from(q.values) };
}

/** The largest singular values with their vectors, by the eigenvectors of W W^T or W^T W, whichever is smaller. */
function singular(weight: Matrix, rank: number): Singular {
  const wide = weight.rows <= weight.columns;
  const gram = wide ? multiply(weight, weight, { turnB: true }) : multiply(weight, weight, { turnA: true });
  const { values: squares, vectors } = largestEigen(gram, rank);
  const values = squares.map((square) => Math.sqrt(Math.max(0, square)));
  const other = multiply(weight, vectors, { turnA: wide });
  for (let i = 0; i < other.values.length; i++) {
    const value = values[i % rank]!;
    other.values[i] = value > 0 ? other.values[i]! / value : 0;
  }
  return wide ? { u: vectors, values, v: other } : { u: other, values, v: vectors };
}

/** The same by subspace iteration from random columns (Halko et al. 2009, algorithm 4.4), as torch.svd_lowrank does it. */
function approximate(weight: Matrix, rank: number, rounds: number, seed: readonly number[]): Singular {
  const rng = new Rng(...seed);
  const start = matrix(
    weight.columns,
    rank,
    Float64Array.from({ length: weight.columns * rank }, () => rng.normal()),
  );
  let q = orthonormal(multiply(weight, start));
  for (let round = 0; round < rounds; round++) {
    const back = orthonormal(multiply(weight, q, { turnA: true }));
    q = orthonormal(multiply(weight, back));
  }
  const { u, values, v } = singular(multiply(q, weight, { turnA: true }), rank);
  return { u: multiply(q, u), values, v };
}
