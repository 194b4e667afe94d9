// What the kernels that touch adapters share: how adapters lie in rows, tensors and tables, on the CPU adapter by adapter.
//
// Rows: an adapter's rows begin at a multiple of the device's row tile; `tileAdapter` i32[M / rowTile] names the adapter of
// each tile, -1 for none (then the base alone is computed). Padding rows lie at the end of an adapter's tiles: they hold a
// valid token and an empty attention range, and their gradients are zero, so that they change nothing.
//
// Adapters: each has memory of its own, which kernels find by tables with a row for each of L slots, `stride` of the tensor
// apart. `ranks` i32[L, G] are 0 where a linear is not a target; `scale` f32[L, G] multiplies B A x. `factors` i64[L, G, 4] are
// addresses of contiguous matrices: A c[r, K] and the transposed B c[r, N of the linear], and their gradients in f32; 0 where
// the rank is 0. `vectors` i64[L, G, 4] are addresses of f32 vectors of the adapter's method: those that it stores, each
// followed by its gradient, then those that are derived. One along the output is a single vector [N] of the whole group.
// `firstColumn` says where each of the G linears begins in N, and ends with N: [0, N] or [0, Nq, Nq + Nk, N].
//
// s = drop(x) A^T and its gradient ds, c[E], have for each row as many columns as its adapter needs there: W = the sum over g
// of ranks[l, g] rounded up to 16, linear g's after those before it. The rows of tile t begin at element 16 lowAt[t], `lowAt`
// i32[M / rowTile], and are W apart. What lies between a rank and the next multiple of 16 is zero or not read.
//
// Dropout: `dropout` i32[L, 4] = seed, step, keep threshold, bits of f32 1 / (1 - p). An element of row m, column k is kept
// when dropoutBits(dropoutRowKey(seed, step, module, rowNumber[m]), k) >= threshold, as unsigned numbers (base/rng.ts);
// threshold 0 keeps all. `module` numbers the group within the whole model: layer * 4 + group.
//
// On the CPU an adapter's products have the same sizes whatever else is in the pass (its own rows, its rank), so the same sums
// are done.

import { F, I, native, P, U } from "../../../ffi/native.ts";
import { alignUp } from "../../base/shape.ts";
import { addressesIn, floats, type Host, ints, type Matrix, rowsOfInts, unsigned } from "../../device/cpu/host.ts";
import type { Variant } from "../../device/cuda/variants.ts";
import type { Tensor } from "../../device/device.ts";
import { paddedWidth, RANK_TILE } from "../../methods/layout.ts";
import { dim, strideOf } from "../op.ts";

const c = native({ dropout: { args: [P, P, P, I, I, U, U, U, U, F, I], returns: "void" } });

/**
 * The least and the most rank of the adapters of a micro-batch in the linears that they target. It decides which variant of a
 * kernel is launched on how large a grid, and no result: bounds are as right.
 */
export type RankSpan = { readonly least: number; readonly most: number };

/** What every kernel that touches adapters reads. */
export type AdapterArgs = {
  readonly span: RankSpan;
  readonly tileAdapter: Tensor;
  readonly lowAt: Tensor;
  readonly factors: Tensor;
  readonly ranks: Tensor;
  /** On the CPU an adapter's tiles are multiplied one by one: its rows may be cut anywhere between them. */
  readonly byTile?: true;
};
export const ADAPTER_SPECS = { factors: "i64 L G 4", ranks: "i32 L G", lowAt: "i32 T" };
export type DropoutArgs = { readonly rowNumber: Tensor; readonly dropout: Tensor; readonly module: number };
export const DROPOUT_SPECS = { rowNumber: "i32 M", dropout: "i32 L 4" };

/** Places of a linear's addresses in `factors`. */
export const [A, B, A_GRADIENT, B_GRADIENT] = [0, 1, 2, 3];

/** Where a linear of a group begins in its output, and how many columns it has. */
export const columnsIn = (firstColumn: readonly number[], g: number): readonly [first: number, columns: number] => [
  firstColumn[g]!,
  firstColumn[g + 1]! - firstColumn[g]!,
];

// On GPUs.

/** Where the second and the third linear of a group begin; N where there is none. */
export const boundaries = (firstColumn: readonly number[]) => {
  const N = firstColumn.at(-1)!;
  const [, first1 = N, first2 = N] = firstColumn;
  return { first1, first2 };
};

/** Columns of s that the widest adapter has, at most. */
export const widest = ({ span, ranks }: Pick<AdapterArgs, "span" | "ranks">): number =>
  dim(ranks, 1) * alignUp(span.most, RANK_TILE);

/** The first of these variants whose block, a constant, holds so much; else the last, which takes more blocks than one. */
export const holding = (variants: readonly Variant[], block: "RB" | "CB", size: number): Variant =>
  variants.find((variant) => variant.constant(block) >= size) ?? variants.at(-1)!;

/** The tables as arguments of a kernel; null for none. */
export const tablesOf = (args: Omit<AdapterArgs, "span"> | null) => ({
  ...{ factors: args?.factors ?? null, ranks: args?.ranks ?? null, G: args ? dim(args.ranks, 1) : 1 },
  ...{ low_at: args?.lowAt ?? null, tile_adapter: args?.tileAdapter ?? null },
  ...{ factors_stride: args ? strideOf(args.factors) : 0, ranks_stride: args ? strideOf(args.ranks) : 0 },
});

// On the CPU.

export const F32 = 4;
export const rowsOf = (t: Tensor, row = 0): Matrix => ({ ptr: t.ptr + row * dim(t, 1) * F32, ld: dim(t, 1) });
export const columnsOf = (m: Matrix, column: number): Matrix => ({ ptr: m.ptr + column * F32, ld: m.ld });

export type Segment = { readonly row: number; readonly rows: number; readonly adapter: number };

/** Runs of tiles with one adapter; `byTile`: each tile alone. */
export function segments({ rowTile }: Host, tileAdapter: Tensor, rows: number, byTile = false): Segment[] {
  const tiles = ints(tileAdapter).subarray(0, Math.ceil(rows / rowTile));
  const found: Segment[] = [];
  for (let tile = 0; tile < tiles.length; ) {
    const adapter = tiles[tile]!;
    const first = tile;
    do tile++;
    while (!byTile && tile < tiles.length && tiles[tile] === adapter);
    if (adapter >= 0) found.push({ row: first * rowTile, rows: Math.min(tile * rowTile, rows) - first * rowTile, adapter });
  }
  return found;
}

/** A linear that an adapter targets: its rows of s or ds, and its matrices by their places in `factors`. */
export type Target = {
  readonly g: number;
  readonly rank: number;
  readonly low: (s: Tensor) => Matrix;
  readonly matrix: (which: number) => number;
};

/** Calls `each` for the rows of each adapter that has targets, with these. */
export function eachSegment(
  host: Host,
  args: AdapterArgs,
  rows: number,
  each: (segment: Segment, targets: readonly Target[]) => void,
): void {
  const [ranks, starts, addresses] = [rowsOfInts(args.ranks), ints(args.lowAt), addressesIn(args.factors)];
  for (const segment of segments(host, args.tileAdapter, rows, args.byTile)) {
    const { adapter, row } = segment;
    const own = ranks(adapter);
    const ld = paddedWidth(own);
    const targets: Target[] = [];
    let column = starts[row / host.rowTile]! * RANK_TILE;
    for (const [g, rank] of own.entries()) {
      const from = column;
      const low = (s: Tensor): Matrix => ({ ptr: s.ptr + from * F32, ld });
      if (rank > 0) targets.push({ g, rank, low, matrix: (which) => addresses(adapter, g, which) });
      column += alignUp(rank, RANK_TILE);
    }
    if (targets.length > 0) each(segment, targets);
  }
}

/** Applies an adapter's mask to its rows of x: into `to`, or added to it. */
export function applyDropout(args: DropoutArgs, { row, rows, adapter }: Segment, x: Matrix, to: Matrix, add: boolean): void {
  const [seed, step, threshold] = unsigned(args.dropout).subarray(adapter * 4);
  const keepScale = floats(args.dropout)[adapter * 4 + 3]!;
  const numbers = args.rowNumber.ptr + row * 4;
  c.dropout(x.ptr, to.ptr, numbers, rows, x.ld, seed!, step!, args.module, threshold!, keepScale, add ? 1 : 0);
}

export const drops = (args: DropoutArgs, adapter: number): boolean => unsigned(args.dropout)[adapter * 4 + 2] !== 0;

/** An adapter's rows of x under its mask. */
export function masked(host: Host, args: DropoutArgs & { readonly x: Tensor }, segment: Segment): Matrix {
  const x = rowsOf(args.x, segment.row);
  if (!drops(args, segment.adapter)) return x;
  const dropped = { ptr: host.scratch(segment.rows * x.ld * F32), ld: x.ld };
  applyDropout(args, segment, x, dropped, false);
  return dropped;
}
