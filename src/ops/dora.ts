// What DoRA (Liu et al. 2024) adds to a linear layer with low-rank products: the norms of rows, and their lengths as factors.

import { base, F, I, native, P } from "../../ffi/native.ts";
import { range } from "../base/shape.ts";
import { addressesIn, ints, rowsOfFloats, rowsOfInts } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { isPacked, type Weight } from "../device/packed.ts";
import { CUDA_ROW_TILE } from "../device/tile.ts";
import { A, B, columnsIn, F32, holding, rowsOf, segments } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { denseOf, expandRows, widestPiece } from "./packed.ts";

const c = native({
  dora_norm: { args: [P, P, P, I, I, I, I, F, P, P, P, I], returns: "void" },
  dora_forward: { args: [P, P, P, P, P, I, I], returns: "void" },
  dora_backward: { args: [P, P, P, P, P, I, I], returns: "void" },
});

/** Places of a DoRA's addresses in `vectors`: the lengths, their gradient, gain and inverse. */
const [LENGTHS, LENGTHS_GRADIENT, INVERSE] = [0, 1, 3];
export const GAIN = 2;

/**
 * DoRA's norms of the adapters l whose `stale` i32[L] is not 0: norm[n] = |weight[n] + scale sum_r B[n, r] A[r]| over the rows
 * of the linears that l targets; gain[n] = m[n] / norm[n] and inverse[n] = 1 / norm[n], or 0 for a row of zeros. Where stale is
 * 2 m[n] first becomes norm[n]. All else is left as it is. `vectors` are those of m, its gradient, gain and inverse.
 */
export const doraNorm = op<{
  weight: Weight;
  factors: Tensor;
  vectors: Tensor;
  scale: Tensor;
  ranks: Tensor;
  firstColumn: readonly number[];
  stale: Tensor;
  /** Of the ranks of these adapters; a bound is as right. */
  most: number;
}>(
  "dora_norm",
  {
    weight: "w N K",
    factors: "i64 L G 4",
    vectors: "i64 L G 4",
    scale: "f32 L G",
    ranks: "i32 L G",
    stale: "i32 L",
  },
  {
    cpu: ({ weight, factors, vectors, scale, ranks, firstColumn, stale }, host) => {
      const width = weight.shape[1]!;
      const [factor, vector] = [addressesIn(factors), addressesIn(vectors)];
      const [ranksOf, scales] = [rowsOfInts(ranks), rowsOfFloats(scale)];
      for (const [slot, is] of ints(stale).entries())
        for (const [g, rank] of ranksOf(slot).entries()) {
          if (is === 0 || rank === 0) continue;
          const [first, count] = columnsIn(firstColumn, g);
          const [a, b] = [factor(slot, g, A), factor(slot, g, B)];
          const step = isPacked(weight) ? widestPiece(host.cores) : count; // rows are independent of each other
          for (let row = 0; row < count; row += step) {
            const rows = Math.min(step, count - row);
            const w = isPacked(weight) ? expandRows(host, weight, first + row, rows) : rowsOf(weight, first + row).ptr;
            const at = (which: number) => vector(slot, g, which) + row * F32;
            const own = [at(LENGTHS), at(GAIN), at(INVERSE)] as const;
            c.dora_norm(w, a, b + row * F32, rows, width, rank, count, scales(slot)[g]!, ...own, is === 2 ? 1 : 0);
          }
        }
    },
    cuda: ({ weight, factors, vectors, scale, ranks, firstColumn, stale, most }, gpu) => {
      const w = denseOf(gpu, weight);
      const [K, L] = [dim(w, 1), dim(ranks, 0)];
      const kernel = holding(gpu.variants("dora_norm"), "RB", most);
      const strides = {
        ...{ factors_stride: strideOf(factors), vectors_stride: strideOf(vectors) },
        ...{ scale_stride: strideOf(scale), ranks_stride: strideOf(ranks) },
      };
      for (const [g, first] of firstColumn.slice(0, -1).entries()) {
        const last = firstColumn[g + 1]!;
        const programs = Math.min(cdiv(last - first, kernel.constant("BN")), Math.max(16, cdiv(2048, L)));
        gpu.launch(kernel, [L, programs], { w, factors, vectors, scale, ranks, stale, ...strides, g, first, last, K });
      }
    },
  },
);

const isIn = (decomposed: Tensor) => {
  const rows = rowsOfInts(decomposed);
  return (slot: number): boolean => rows(slot)[0] === 1;
};

/**
 * y = gain z + bias + residual in the tiles of adapters whose `decomposed` i32[L] is 1, over all columns of the group; y's
 * other rows are left as they are. z, y c[M, N]; bias c[N] and residual c[M, N] may be null.
 */
export const doraForward = op<{
  z: Tensor;
  bias: Tensor | null;
  residual: Tensor | null;
  vectors: Tensor;
  decomposed: Tensor;
  y: Tensor;
  tileAdapter: Tensor;
}>(
  "dora_forward",
  { z: "c M N", bias: "c N", residual: "c M N", vectors: "i64 L G 4", decomposed: "i32 L", y: "c M N" },
  {
    cpu: ({ z, bias, residual, vectors, decomposed, y, tileAdapter }, host) => {
      const [width, vector, isOwn] = [dim(y, 1), addressesIn(vectors), isIn(decomposed)];
      for (const { row, rows, adapter } of segments(host, tileAdapter, dim(y, 0))) {
        if (!isOwn(adapter)) continue;
        const more = residual && rowsOf(residual, row).ptr;
        const gain = vector(adapter, 0, GAIN);
        c.dora_forward(rowsOf(z, row).ptr, gain, bias?.ptr ?? null, more, rowsOf(y, row).ptr, rows, width);
      }
    },
    cuda: ({ z, bias, residual, vectors, decomposed, y, tileAdapter }, gpu) => {
      const [M, N] = [dim(y, 0), dim(y, 1)];
      const kernel = gpu.kernel("dora_forward", { BIAS: flag(bias), RESIDUAL: flag(residual) });
      const grid = [M / kernel.constant("ROWS"), cdiv(N, kernel.constant("BN"))] as const;
      const strides = { vectors_stride: strideOf(vectors), decomposed_stride: strideOf(decomposed) };
      gpu.launch(kernel, grid, { z, bias, residual, vectors, decomposed, ...strides, y, tile_adapter: tileAdapter, N });
    },
  },
);

/**
 * In the tiles of decomposed adapters the gradient of m[n] += inverse[n] sum_m dy[m, n] z[m, n], then z becomes gain[n] dy[m,
 * n]; in all other tiles z becomes dy. An adapter's tiles lie side by side and are summed in order.
 */
export const doraBackward = op<{ dy: Tensor; z: Tensor; vectors: Tensor; decomposed: Tensor; tileAdapter: Tensor }>(
  "dora_backward",
  { dy: "c M N", z: "c M N", vectors: "i64 L G 4", decomposed: "i32 L" },
  {
    cpu: ({ dy, z, vectors, decomposed, tileAdapter }, host) => {
      const [rows, width] = [dim(dy, 0), dim(dy, 1)];
      const [vector, isOwn] = [addressesIn(vectors), isIn(decomposed)];
      const others = new Set(range(Math.ceil(rows / host.rowTile)));
      for (const segment of segments(host, tileAdapter, rows)) {
        const { row, adapter } = segment;
        if (!isOwn(adapter)) continue;
        for (let tile = row / host.rowTile; tile * host.rowTile < row + segment.rows; tile++) others.delete(tile);
        const at = (which: number) => vector(adapter, 0, which);
        const own = [at(GAIN), at(INVERSE), at(LENGTHS_GRADIENT)] as const;
        c.dora_backward(rowsOf(dy, row).ptr, rowsOf(z, row).ptr, ...own, segment.rows, width);
      }
      for (const tile of others) {
        const count = Math.min(host.rowTile, rows - tile * host.rowTile);
        base.native_copy(rowsOf(z, tile * host.rowTile).ptr, rowsOf(dy, tile * host.rowTile).ptr, count * width * F32);
      }
    },
    cuda: ({ dy, z, vectors, decomposed, tileAdapter }, gpu) => {
      const [M, N] = [dim(dy, 0), dim(dy, 1)];
      const kernel = gpu.kernel("dora_backward");
      const strides = { vectors_stride: strideOf(vectors), decomposed_stride: strideOf(decomposed) };
      gpu.launch(kernel, [cdiv(N, kernel.constant("BN")), M / CUDA_ROW_TILE], {
        ...{ dy, z, vectors, decomposed, ...strides, tile_adapter: tileAdapter, M, N },
      });
    },
  },
);
