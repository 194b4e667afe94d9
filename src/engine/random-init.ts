// What the factors of an adapter are before its first step, as PEFT begins them. A function of the seed and the place
// alone, so that it is the same on any number of stages.

import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { matrix, orthonormal } from "../device/algebra.ts";
import { LINEARS, type Linear } from "../families/linears.ts";
import type { Init } from "../methods/init.ts";
import { type Factor, type StageSettings, TENSORS } from "../methods/registry.ts";
import { TABLE_KINDS, type TableKind } from "../methods/tables.ts";

/**
 * default: A uniform in +-1 / sqrt(in) (Kaiming with a = sqrt 5), B zero. gaussian: A normal with deviation 1 / rank, B
 * zero. orthogonal: both random, their rows and columns in spaces at right angles, so that B A is zero (Xu, Datta 2024);
 * the rank is even.
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
  /** Of experts: the rank where it is not all of `rows`, as each has an A of its own. */
  readonly rankOfEach?: number;
} & StageSettings;

/** f32[rows * columns]. What follows from the weight, as DoRA's M, the stage computes afterwards. */
export function initialise(init: Random, at: FactorAt): Float32Array {
  const { seed, layer, linear, factor, rows, columns } = at;
  const { initial } = TENSORS[factor];
  if (initial !== "init") return new Float32Array(rows * columns).fill(initial(at));
  return randomFactor(init, new Rng(seed, layer, LINEARS.indexOf(linear), 0x10a), at);
}

function randomFactor(
  init: Random,
  rng: Rng,
  { factor, rows, columns, rankOfEach = rows }: Pick<FactorAt, "factor" | "rows" | "columns" | "rankOfEach">,
): Float32Array {
  const values = new Float32Array(rows * columns);
  if (init === "orthogonal") return orthogonal(rng, factor, rows, columns);
  if (factor === "B") return values;
  const bound = 1 / Math.sqrt(columns);
  for (let i = 0; i < values.length; i++)
    values[i] = init === "gaussian" ? rng.normal() / rankOfEach : (2 * rng.uniform() - 1) * bound;
  return values;
}

/**
 * A or B of a table, as PEFT begins them: of the head as of any linear, of the embedding A normal and B zero. f32[rows *
 * columns].
 */
export function initialiseTable(
  init: Random,
  { kind, ...at }: Pick<FactorAt, "seed" | "rows" | "columns"> & { readonly kind: TableKind; readonly factor: "A" | "B" },
): Float32Array {
  const rng = new Rng(at.seed, LINEARS.length + TABLE_KINDS.indexOf(kind), 0x10b);
  if (kind === "head") return randomFactor(init, rng, at);
  const values = new Float32Array(at.rows * at.columns);
  return at.factor === "B" ? values : values.map(() => rng.normal());
}

/**
 * A = Q_even^T R1 / 10 and B = R2 Q_odd / 10, where Q_even and Q_odd are every other row of a random orthogonal [rank,
 * rank].
 */
function orthogonal(rng: Rng, factor: Factor, rows: number, columns: number): Float32Array {
  const rank = factor === "A" ? rows : columns;
  const random = matrix(rank, rank);
  for (const j of range(rank)) for (const i of range(rank)) random.values[i * rank + j] = rng.normal();
  const basis = orthonormal(random).values;
  const half = range(rank).filter((j) => j % 2 === (factor === "A" ? 0 : 1));
  const other = new Rng(rng.bits(), factor === "A" ? 1 : 2);
  const values = new Float32Array(rows * columns);
  const outer = factor === "A" ? columns : rows;
  for (let o = 0; o < outer; o++) {
    const weights = half.map(() => other.normal() / 10);
    for (let r = 0; r < rank; r++) {
      let total = 0;
      for (const [k, weight] of weights.entries()) total += weight * basis[r * rank + half[k]!]!;
      values[factor === "A" ? r * columns + o : o * columns + r] = total;
    }
  }
  return values;
}
