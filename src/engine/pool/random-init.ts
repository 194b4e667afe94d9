// What the factors of an adapter are before its first step, as PEFT begins them. A function of the seed and the place
// alone, so that it is the same on any number of stages.

import { hash, Rng } from "../../base/rng.ts";
import { range } from "../../base/shape.ts";
import { matrix, orthonormal } from "../../device/algebra.ts";
import { LINEARS, type Linear } from "../../families/linears.ts";
import { fillNormal, fillUniform } from "../../files/factors.ts";
import type { Init } from "../../methods/init.ts";
import { type Factor, type StageSettings, TENSORS } from "../../methods/registry.ts";
import { TABLE_KINDS, type TableKind } from "../../methods/tables.ts";

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

/** Whether a factor begins as zeros, so that it need not be written. */
export const beginsAsZero = (init: Random, factor: Factor): boolean =>
  TENSORS[factor].initial === "init" && factor === "B" && init !== "orthogonal";

/** f32[rows * columns], into `values`. What follows from the weight, as DoRA's M, the stage computes afterwards. */
export function initialise(
  init: Random,
  at: FactorAt,
  values = new Float32Array(new ArrayBuffer(4 * at.rows * at.columns)),
): Float32Array {
  const { seed, layer, linear, factor, rows, columns, rankOfEach = rows } = at;
  const { initial } = TENSORS[factor];
  const stream = [seed, layer, LINEARS.indexOf(linear), 0x10a];
  if (initial !== "init") values.fill(initial(at));
  else if (init === "orthogonal") values.set(orthogonal(new Rng(...stream), factor, rows, columns));
  else if (beginsAsZero(init, factor)) values.fill(0);
  else if (init === "gaussian") fillNormal(values, hash(...stream), rankOfEach);
  else fillUniform(values, hash(...stream), 1 / Math.sqrt(columns));
  return values;
}

/**
 * A or B of a table, as PEFT begins them: of the head as of any linear, of the embedding A normal and B zero. f32[rows *
 * columns].
 */
export function initialiseTable(
  init: Random,
  {
    kind,
    seed,
    factor,
    rows,
    columns,
  }: Pick<FactorAt, "seed" | "rows" | "columns"> & {
    readonly kind: TableKind;
    readonly factor: "A" | "B";
  },
): Float32Array {
  const stream = [seed, LINEARS.length + TABLE_KINDS.indexOf(kind), 0x10b];
  if (kind === "head" && init === "orthogonal") return orthogonal(new Rng(...stream), factor, rows, columns);
  const values = new Float32Array(rows * columns);
  if (factor === "B") return values;
  if (kind === "embedding") fillNormal(values, hash(...stream), 1);
  else if (init === "gaussian") fillNormal(values, hash(...stream), rows);
  else fillUniform(values, hash(...stream), 1 / Math.sqrt(columns));
  return values;
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
