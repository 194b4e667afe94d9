// What the factors of an adapter are before its first step, as PEFT begins them. A function of the seed and the place alone, so that it is the
// same on any number of stages.

import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { LINEARS, type Linear } from "../base/spec.ts";
import type { Init } from "../methods/init.ts";
import type { Factor } from "./adapter-pool.ts";

/**
 * default: A uniform in +-1 / sqrt(in) (Kaiming with a = sqrt 5), B zero. gaussian: A normal with deviation 1 / rank, B zero.
 * orthogonal: both random, their rows and columns in spaces at right angles, so that B A is zero (Xu, Datta 2024); the rank is even.
 */
export type Random = "default" | "gaussian" | "orthogonal";
export const isRandom = (init: Init): init is Random => init === "default" || init === "gaussian" || init === "orthogonal";

export type FactorAt = {
  readonly seed: number;
  readonly layer: number;
  readonly linear: Linear;
  readonly factor: Factor;
  /** A is [rank, in], B is [out, rank]. */
  readonly rows: number;
  readonly columns: number;
  /** What VeRA's lambda_d begins as. */
  readonly dInitial?: number | undefined;
};

/** f32[rows * columns]. DoRA's M is 0 here: it begins as the norms of rows, which only the device knows. */
export function initialise(init: Random, at: FactorAt): Float32Array {
  const { seed, layer, linear, factor, rows, columns, dInitial = 0.1 } = at;
  const values = new Float32Array(rows * columns);
  if (factor === "lambda_d") return values.fill(dInitial);
  if (factor === "M" || factor === "lambda_b") return values;
  const rng = new Rng(seed, layer, LINEARS.indexOf(linear), 0x10a);
  if (init === "orthogonal") return orthogonal(rng, factor, rows, columns);
  if (factor === "B") return values;
  const bound = 1 / Math.sqrt(columns);
  for (let i = 0; i < values.length; i++)
    values[i] = init === "gaussian" ? rng.normal() / rows : (2 * rng.uniform() - 1) * bound;
  return values;
}

/** A = Q_even^T R1 / 10 and B = R2 Q_odd / 10, where Q_even and Q_odd are every other row of a random orthogonal [rank, rank]. */
function orthogonal(rng: Rng, factor: Factor, rows: number, columns: number): Float32Array {
  const rank = factor === "A" ? rows : columns;
  const basis = orthonormal(range(rank).map(() => range(rank).map(() => rng.normal())));
  const half = basis.filter((_, i) => i % 2 === (factor === "A" ? 0 : 1));
  const other = new Rng(rng.bits(), factor === "A" ? 1 : 2);
  const values = new Float32Array(rows * columns);
  const outer = factor === "A" ? columns : rows;
  for (let o = 0; o < outer; o++) {
    const weights = half.map(() => other.normal() / 10);
    for (let r = 0; r < rank; r++) {
      let total = 0;
      for (const [k, weight] of weights.entries()) total += weight * half[k]![r]!;
      values[factor === "A" ? r * columns + o : o * columns + r] = total;
    }
  }
  return values;
}

/** Gram and Schmidt, twice: once leaves what rounding spoils. */
function orthonormal(vectors: number[][]): number[][] {
  const basis: number[][] = [];
  for (let vector of vectors) {
    for (let round = 0; round < 2; round++)
      for (const unit of basis) {
        const along = dot(vector, unit);
        vector = vector.map((x, i) => x - along * unit[i]!);
      }
    const length = Math.sqrt(dot(vector, vector));
    basis.push(vector.map((x) => x / length));
  }
  return basis;
}

const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((total, x, i) => total + x * b[i]!, 0);
