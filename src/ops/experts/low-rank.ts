// Adapters in experts: how their factors lie in tables, and on the CPU block by block.
//
// As linear/low-rank.ts, but each factor of a linear is of one expert, or one of all experts: `factors` i64[L, G, 4] has the
// addresses of the first expert's A [r, K], transposed B [r, N of the linear], and their gradients; `strides` i32[L, G, 2]
// elements from an expert's A, and B, to the next one's, 0 where all share it. s and ds are c[P, W] of sorted rows (route.ts):
// linear g's columns lie after those before it, each rounded up to 16 by the ranks of the row's own adapter. Experts drop
// nothing.

import { alignUp } from "../../base/shape.ts";
import { addressesIn, ints, rowsOfInts } from "../../device/cpu/host.ts";
import type { Tensor } from "../../device/device.ts";
import { CPU_EXPERT_TILE } from "../../device/tile.ts";
import { RANK_TILE } from "../../methods/layout.ts";
import { A, A_GRADIENT, boundaries, F32, type RankSpan } from "../linear/low-rank.ts";
import { dim, strideOf } from "../op.ts";
import type { Routes } from "../route.ts";

export type ExpertAdapters = {
  readonly span: RankSpan;
  readonly factors: Tensor;
  readonly strides: Tensor;
  readonly ranks: Tensor;
};
export const EXPERT_SPECS = { factors: "i64 L G 4", strides: "i32 L G 2", ranks: "i32 L G" };

// On GPUs.

/** The tables as arguments of a kernel, null for none; the linears begin at `firstColumn` in N columns. */
export function expertTablesOf(args: Omit<ExpertAdapters, "span"> | null, firstColumn: readonly number[]) {
  const tables = { factors: args?.factors ?? null, strides: args?.strides ?? null, ranks: args?.ranks ?? null };
  const of = (t: Tensor | undefined): number => (t ? strideOf(t) : 0);
  const steps = { factors_stride: of(args?.factors), strides_stride: of(args?.strides), ranks_stride: of(args?.ranks) };
  return { ...tables, ...steps, ...boundaries(firstColumn), G: args ? dim(args.ranks, 1) : 0 };
}

/** Where the rows of experts lie, as arguments of a kernel; `gather` as experts.ts has it. */
export const sortedRowsOf = ({ source, tileAdapter, blocks, firstRow, experts }: Routes, gather: boolean) => ({
  ...{ source, row_adapter: tileAdapter, blocks, E: dim(firstRow, 0) - 1, gathers: gather ? dim(experts, 1) : 0 },
});

// On the CPU.

/** Rows that are multiplied at once, at most. */
export const BLOCK_ROWS = 20 * CPU_EXPERT_TILE;

/** Rows of one adapter in one expert; `adapter` -1 for none. */
export type Block = { readonly row: number; readonly rows: number; readonly expert: number; readonly adapter: number };

/** Calls `each` for all sorted rows, in order; blocks begin where their adapter's rows in the expert begin. */
export function eachBlock({ tileExpert, tileAdapter }: Routes, each: (block: Block) => void): void {
  const [experts, adapters] = [ints(tileExpert), ints(tileAdapter)];
  const most = BLOCK_ROWS / CPU_EXPERT_TILE;
  for (let tile = 0; tile < experts.length && experts[tile]! >= 0; ) {
    const first = tile;
    const [expert, adapter] = [experts[tile]!, adapters[tile]!];
    while (tile - first < most && experts[tile] === expert && adapters[tile] === adapter) tile++;
    each({ row: first * CPU_EXPERT_TILE, rows: (tile - first) * CPU_EXPERT_TILE, expert, adapter });
  }
}

/** A linear that the adapter of a block targets. */
export type ExpertTarget = {
  readonly g: number;
  readonly rank: number;
  /** Where its columns of s begin. */
  readonly column: number;
  /** The address of the expert's matrix, by its place in `factors`. */
  readonly matrix: (which: number) => number;
};

export function eachTarget(args: ExpertAdapters, expert: number, adapter: number, each: (target: ExpertTarget) => void): void {
  if (adapter < 0) return;
  const [ranks, strides, addresses] = [
    rowsOfInts(args.ranks)(adapter),
    rowsOfInts(args.strides)(adapter),
    addressesIn(args.factors),
  ];
  let column = 0;
  for (const [g, rank] of ranks.entries()) {
    const matrix = (which: number) => {
      const stride = strides[2 * g + (which === A || which === A_GRADIENT ? 0 : 1)]!;
      return addresses(adapter, g, which) + expert * stride * F32;
    };
    if (rank > 0) each({ g, rank, column, matrix });
    column += alignUp(rank, RANK_TILE);
  }
}

/** Some rows of a matrix. */
export const rowsAt = (t: Tensor, row: number, rows: number): Tensor => ({
  ...t,
  ptr: t.ptr + row * dim(t, 1) * F32,
  shape: [rows, dim(t, 1)],
});
