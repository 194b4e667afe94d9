// What the kernels that touch adapters share: how adapters lie in rows, tensors and tables, on the CPU adapter by adapter.
//
// Rows: an adapter's rows begin at a multiple of the device's row tile; `tileAdapter` i32[M / rowTile] names the adapter of
// each tile, -1 for none (then the base alone is computed). Padding rows lie at the end of an adapter's tiles: they hold a
// valid token and an empty attention range, and their gradients are zero, so that they change nothing.
//
// Adapters: `a` is [L, G * R, K] and `b` is [L, N, R], row-major inside an adapter; `stride` of the tensor is the distance
// between adapters. `ranks` i32[L, G] holds true ranks, 0 where a linear is not a target; `scale` f32[L, G] what multiplies
// B A x. Elements beyond an adapter's rank are zero in a, b, s, ds, da and db. `firstColumn` says where each of the G linears
// begins in N, and ends with N: [0, N] or [0, Nq, Nq + Nk, N].
//
// Dropout: `dropout` i32[L, 4] = seed, step, keep threshold, bits of f32 1 / (1 - p). An element of row m, column k is kept
// when dropoutBits(dropoutRowKey(seed, step, module, rowNumber[m]), k) >= threshold, as unsigned numbers (base/rng.ts);
// threshold 0 keeps all. `module` numbers the group within the whole model: layer * 4 + group.
//
// On the CPU an adapter's products have the same sizes whatever else is in the pass (its own rows, its true rank), so the same
// sums are done.

import { F, I, native, P, U } from "../../../ffi/native.ts";
import { floats, type Host, ints, type Matrix, unsigned } from "../../device/cpu/host.ts";
import type { Tensor } from "../../device/device.ts";
import { CPU_ROW_TILE as ROW_TILE } from "../../device/tile.ts";
import { dim } from "../op.ts";

const c = native({ dropout: { args: [P, P, P, I, I, U, U, U, U, F, I], returns: "void" } });

/** What every kernel that touches adapters reads. */
export type AdapterArgs = { readonly tileAdapter: Tensor; readonly ranks: Tensor };
export type DropoutArgs = { readonly rowNumber: Tensor; readonly dropout: Tensor; readonly module: number };

// On GPUs.

/** G of `s` [M, G R], where R is the padded rank. */
export const shapeOf = (s: Tensor, groups: number) => ({ G: groups, R: dim(s, 1) / groups });

/** Where the second and the third linear of a group begin; N where there is none. */
export const boundaries = (firstColumn: readonly number[]) => {
  const N = firstColumn.at(-1)!;
  const [, first1 = N, first2 = N] = firstColumn;
  return { first1, first2 };
};

// On the CPU.

export const F32 = 4;
export const rowsOf = (t: Tensor, row = 0): Matrix => ({ ptr: t.ptr + row * dim(t, 1) * F32, ld: dim(t, 1) });
export const columnsOf = (m: Matrix, column: number): Matrix => ({ ptr: m.ptr + column * F32, ld: m.ld });

/** The part of a stacked tensor [L, rows, columns] that belongs to `adapter`, from row `row` of it. */
export function partOf(t: Tensor, adapter: number, row: number): Matrix {
  const columns = dim(t, 2);
  return { ptr: t.ptr + (adapter * (t.stride ?? dim(t, 1) * columns) + row * columns) * F32, ld: columns };
}

export type Segment = { readonly row: number; readonly rows: number; readonly adapter: number };

/** Runs of tiles with one adapter. */
export function segments(tileAdapter: Tensor, rows: number): Segment[] {
  const tiles = ints(tileAdapter).subarray(0, Math.ceil(rows / ROW_TILE));
  const found: Segment[] = [];
  for (let tile = 0; tile < tiles.length; ) {
    const adapter = tiles[tile]!;
    const first = tile;
    while (tile < tiles.length && tiles[tile] === adapter) tile++;
    if (adapter >= 0) found.push({ row: first * ROW_TILE, rows: Math.min(tile * ROW_TILE, rows) - first * ROW_TILE, adapter });
  }
  return found;
}

/** Calls `each` for every (rows of an adapter, linear that it targets). */
export function eachTarget(
  args: AdapterArgs,
  rows: number,
  each: (segment: Segment, linear: number, rank: number) => void,
): void {
  const linears = dim(args.ranks, 1);
  const ranks = ints(args.ranks);
  for (const segment of segments(args.tileAdapter, rows))
    for (let g = 0; g < linears; g++) {
      const rank = ranks[segment.adapter * linears + g]!;
      if (rank > 0) each(segment, g, rank);
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
