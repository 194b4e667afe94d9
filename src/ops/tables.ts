// What adapters change of the embedding and of the output head, tables [V, H].
//
// The tables of adapters are those of a group of one linear (linear/low-rank.ts). Of the embedding `factors` are B by token
// c[V, r], A c[r, H] and their gradients in that order; an adapter that trains the rows of single tokens has a rank of 0 there
// and these rows c[n, H] in the place of B. Of the head `factors` are as a linear's, with the rows of tokens in the place of A
// and n in that of the rank.

import { F, I, L, native, P } from "../../ffi/native.ts";
import { addressesIn, type Host, ints, rowsOfFloats, rowsOfInts } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { RANK_TILE } from "../methods/layout.ts";
import { A_GRADIENT, F32, segments } from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

const c = native({
  table_forward: { args: [P, P, P, P, P, P, I, I, I, I, F], returns: "void" },
  rows_sum: { args: [P, P, I, I, P], returns: "void" },
  gradients_add: { args: [P, P, L], returns: "void" },
  columns_put: { args: [P, P, P, I, I, I, I], returns: "void" },
  columns_take: { args: [P, P, P, I, I, I, I], returns: "void" },
});

/** Places of an embedding's addresses in `factors`. */
const [B_OR_ROWS, A] = [0, 1];

type Rows = { readonly tileAdapter: Tensor; readonly lowAt: Tensor; readonly factors: Tensor; readonly ranks: Tensor };
const SPECS = { factors: "i64 L G 4", ranks: "i32 L G", lowAt: "i32 T" };

/**
 * The embedding of ids i32[M], in x c[M, H]: where tokenRow i32[M] is 0 or more it becomes that row of its adapter's, else
 * x += scale s A with s = B[id], which is kept in s c[E], zero beyond a rank.
 */
export const tableForward = op<Rows & { x: Tensor; ids: Tensor; tokenRow: Tensor; scale: Tensor; s: Tensor }>(
  "table_forward",
  { x: "c M H", ids: "i32 M", tokenRow: "i32 M", scale: "f32 L G", s: "c E", ...SPECS },
  {
    cpu: ({ x, ids, tokenRow, scale, s, tileAdapter, lowAt, factors, ranks }, host) => {
      const [M, H] = [dim(x, 0), dim(x, 1)];
      const [own, scales, starts, at] = [rowsOfInts(ranks), rowsOfFloats(scale), ints(lowAt), addressesIn(factors)];
      for (const { row, rows, adapter } of segments(host, tileAdapter, M)) {
        const first = at(adapter, 0, B_OR_ROWS);
        if (first === 0) continue;
        const [rank, low] = [own(adapter)[0]!, s.ptr + starts[row / host.rowTile]! * RANK_TILE * F32];
        const [inX, inIds, inRows] = [x.ptr + row * H * F32, ids.ptr + row * 4, tokenRow.ptr + row * 4];
        const width = cdiv(rank, RANK_TILE) * RANK_TILE;
        c.table_forward(inX, inIds, inRows, first, at(adapter, 0, A), low, rows, H, rank, width, scales(adapter)[0]!);
      }
    },
    cuda: ({ x, ids, tokenRow, scale, s, tileAdapter, lowAt, factors, ranks }, gpu) => {
      const [M, H] = [dim(x, 0), dim(x, 1)];
      const kernel = gpu.kernel("table_forward");
      gpu.launch(kernel, [M, cdiv(H, kernel.constant("BLOCK"))], {
        ...{ x, ids, token_row: tokenRow, s, low_at: lowAt, factors, scale, ranks, tile_adapter: tileAdapter },
        ...{ factors_stride: strideOf(factors), scale_stride: strideOf(scale), ranks_stride: strideOf(ranks), H },
      });
    },
  },
);

/** Runs of rows, each of one token of one adapter: `runs` i32[R, 4] are its first in `at`, the one after its last, its adapter
 * and the row of the gradient that it adds to. */
export type Runs = { readonly at: Tensor; readonly runs: Tensor };

/**
 * Adds rows of `from` to rows of gradients: of each run the sum over its rows, in their order, of `from` c[E] from element
 * at[i] i32[J] on to row `runs[., 3]` of the first gradient of its adapter in `factors`, f32. A row has as many elements as
 * `width`, or as the adapter's rank with a width of 0.
 */
export const rowsSum = op<Runs & { from: Tensor; factors: Tensor; ranks: Tensor; width: number }>(
  "rows_sum",
  { from: "c E", at: "i32 J", runs: "i32 R 4", factors: "i64 L G 4", ranks: "i32 L G" },
  {
    cpu: ({ from, at, runs, factors, ranks, width }) => {
      const [table, own, address] = [ints(runs), rowsOfInts(ranks), addressesIn(factors)];
      for (let run = 0; run < table.length; run += 4) {
        const [first, end, adapter, row] = table.subarray(run, run + 4) as unknown as [number, number, number, number];
        const size = width || own(adapter)[0]!;
        const to = address(adapter, 0, A_GRADIENT) + row * size * F32;
        c.rows_sum(from.ptr, at.ptr + 4 * first, end - first, size, to);
      }
    },
    cuda: ({ from, at, runs, factors, ranks, width }, gpu) => {
      const kernel = gpu.kernel("rows_sum"); // also where a batch has no runs: scripts/kernels --for finds it
      if (dim(runs, 0) === 0) return;
      const blocks = width === 0 ? 1 : cdiv(width, kernel.constant("BLOCK"));
      gpu.launch(kernel, [dim(runs, 0), blocks], {
        ...{ from_: from, at, runs, factors, ranks, width },
        ...{ factors_stride: strideOf(factors), ranks_stride: strideOf(ranks) },
      });
    },
  },
);

/** y += x, of gradients: f32[E]. */
export const gradientsAdd = op<{ x: Tensor; y: Tensor }>(
  "gradients_add",
  { x: "f32 E", y: "f32 E" },
  {
    cpu: ({ x, y }) => c.gradients_add(x.ptr, y.ptr, dim(y, 0)),
    cuda: ({ x, y }, gpu) => {
      const [kernel, size] = [gpu.kernel("gradients_add"), dim(y, 0)];
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { x, y, size });
    },
  },
);

type Columns = Rows & { logits: Tensor; s: Tensor; tokens: Tensor };
const COLUMN_SPECS = { logits: "c M V", s: "c E", tokens: "i64 L G 4", ...SPECS };

function eachOfTokens(
  host: Host,
  { logits, s, tokens, tileAdapter, lowAt, ranks }: Columns,
  launch: (logits: number, s: number, ids: number, rows: number, classes: number, count: number, width: number) => void,
): void {
  const [M, V] = [dim(logits, 0), dim(logits, 1)];
  const [own, starts, at] = [rowsOfInts(ranks), ints(lowAt), addressesIn(tokens)];
  for (const { row, rows, adapter } of segments(host, tileAdapter, M)) {
    const [ids, count] = [at(adapter, 0, 0), own(adapter)[0]!];
    if (ids === 0) continue;
    const low = s.ptr + starts[row / host.rowTile]! * RANK_TILE * F32;
    launch(logits.ptr + row * V * F32, low, ids, rows, V, count, cdiv(count, RANK_TILE) * RANK_TILE);
  }
}

const columnArgs = ({ logits, s, tokens, tileAdapter, lowAt, ranks }: Columns) => ({
  ...{ logits, s, low_at: lowAt, tokens, ranks, tile_adapter: tileAdapter, V: dim(logits, 1) },
  ...{ tokens_stride: strideOf(tokens), ranks_stride: strideOf(ranks) },
});

/**
 * Of adapters that train rows of the head's tokens: logits c[M, V] of these tokens are s, the product of the adapter's rows.
 * `tokens` i64[L, G, 4]: the address of the i32 ids first, 0 for other adapters; `most`: of tokens, at most.
 */
export const columnsPut = op<Columns & { most: number }>("columns_put", COLUMN_SPECS, {
  cpu: (args, host) => eachOfTokens(host, args, c.columns_put),
  cuda: (args, gpu) => {
    const kernel = gpu.kernel("columns_put");
    gpu.launch(kernel, [dim(args.logits, 0), cdiv(args.most, kernel.constant("BLOCK"))], columnArgs(args));
  },
});

/** The reverse: s becomes the gradient of the tokens' logits, zero beyond them, and that in `logits` zero. */
export const columnsTake = op<Columns & { most: number }>("columns_take", COLUMN_SPECS, {
  cpu: (args, host) => eachOfTokens(host, args, c.columns_take),
  cuda: (args, gpu) => {
    const kernel = gpu.kernel("columns_take");
    gpu.launch(kernel, [dim(args.logits, 0), cdiv(args.most, kernel.constant("BLOCK"))], columnArgs(args));
  },
});
