// What DoRA (Liu et al. 2024) adds to a linear layer with low-rank products: the norms of rows, and their lengths as factors.

import { base, F, I, native, P } from "../../ffi/native.ts";
import { range } from "../base/shape.ts";
import { floats, ints } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { isPacked, type Weight } from "../device/packed.ts";
import { CPU_ROW_TILE, CUDA_ROW_TILE } from "../device/tile.ts";
import { F32, partOf, rowsOf, segments } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { denseOf, expandRows, widestPiece } from "./packed.ts";

const c = native({
  dora_norm: { args: [P, P, P, I, I, I, I, F, P, P, P, I], returns: "void" },
  dora_forward: { args: [P, P, P, P, P, I, I], returns: "void" },
  dora_backward: { args: [P, P, P, P, P, I, I], returns: "void" },
});

const rowOf = (t: Tensor, adapter: number): number => t.ptr + adapter * (t.stride ?? dim(t, 1)) * F32;

/**
 * DoRA's norms of the adapters l whose `stale` i32[L] is not 0: norm[n] = |weight[n] + scale sum_r b[l, n, r] a[l, g R + r]|
 * over the rows of the linears that l targets; gain[l, n] = m[l, n] / norm[n] and inverse[l, n] = 1 / norm[n], or 0 for a row
 * of zeros. Where stale is 2 m[l, n] first becomes norm[n]. All else is left as it is. m f32[L, N], L strided; gain, inverse
 * f32[L, N].
 */
export const doraNorm = op<{
  weight: Weight;
  a: Tensor;
  b: Tensor;
  scale: Tensor;
  ranks: Tensor;
  firstColumn: readonly number[];
  m: Tensor;
  gain: Tensor;
  inverse: Tensor;
  stale: Tensor;
}>(
  "dora_norm",
  {
    weight: "w N K",
    a: "c L S K",
    b: "c L N R",
    scale: "f32 L G",
    ranks: "i32 L G",
    m: "f32 L N",
    gain: "f32 L N",
    inverse: "f32 L N",
    stale: "i32 L",
  },
  {
    cpu: ({ weight, a, b, scale, ranks, firstColumn, m, gain, inverse, stale }, host) => {
      const [width, linears] = [weight.shape[1]!, dim(ranks, 1)];
      for (const [slot, is] of ints(stale).entries())
        for (let g = 0; g < linears; g++) {
          const rank = ints(ranks)[slot * linears + g]!;
          if (is === 0 || rank === 0) continue;
          const [first, down] = [firstColumn[g]!, partOf(a, slot, (g * dim(a, 1)) / linears)];
          const up = partOf(b, slot, first);
          const [lengths, gains, inverses] = [m, gain, inverse].map((of) => rowOf(of, slot) + first * F32);
          const factor = floats(scale)[slot * linears + g]!;
          const count = firstColumn[g + 1]! - first;
          const step = isPacked(weight) ? widestPiece(host.cores) : count; // rows are independent of each other
          for (let row = 0; row < count; row += step) {
            const rows = [Math.min(step, count - row), width, rank, up.ld] as const;
            const w = isPacked(weight) ? expandRows(host, weight, first + row, rows[0]) : rowsOf(weight, first + row).ptr;
            const [length, gained, inverted] = [lengths!, gains!, inverses!].map((of) => of + row * F32);
            const begins = is === 2 ? 1 : 0;
            c.dora_norm(w, down.ptr, up.ptr + row * up.ld * F32, ...rows, factor, length!, gained!, inverted!, begins);
          }
        }
    },
    cuda: ({ weight, a, b, scale, ranks, firstColumn, m, gain, inverse, stale }, gpu) => {
      const w = denseOf(gpu, weight);
      const [N, K, L, G] = [dim(w, 0), dim(w, 1), dim(ranks, 0), dim(ranks, 1)];
      const kernel = gpu.kernel("dora_norm", { R: dim(b, 2) });
      const strides = { a_stride: strideOf(a), b_stride: strideOf(b), m_stride: m.stride ?? N };
      for (let g = 0; g < G; g++) {
        const [first, last] = [firstColumn[g]!, firstColumn[g + 1]!];
        gpu.launch(kernel, [L, cdiv(last - first, kernel.constant("BN"))], {
          ...{ w, a, b, scale, ranks, m, gain, inverse, stale, ...strides },
          ...{ g, G, first, last, N, K },
        });
      }
    },
  },
);

/**
 * y = gain[adapter] z + bias + residual in the tiles of adapters whose `decomposed` i32[L] is 1; y's other rows are left as
 * they are. z, y c[M, N]; bias c[N] and residual c[M, N] may be null.
 */
export const doraForward = op<{
  z: Tensor;
  bias: Tensor | null;
  residual: Tensor | null;
  gain: Tensor;
  decomposed: Tensor;
  y: Tensor;
  tileAdapter: Tensor;
}>(
  "dora_forward",
  { z: "c M N", bias: "c N", residual: "c M N", gain: "f32 L N", decomposed: "i32 L", y: "c M N" },
  {
    cpu: ({ z, bias, residual, gain, decomposed, y, tileAdapter }) => {
      const width = dim(y, 1);
      for (const { row, rows, adapter } of segments(tileAdapter, dim(y, 0))) {
        if (ints(decomposed)[adapter] !== 1) continue;
        const more = residual && rowsOf(residual, row).ptr;
        c.dora_forward(rowsOf(z, row).ptr, rowOf(gain, adapter), bias?.ptr ?? null, more, rowsOf(y, row).ptr, rows, width);
      }
    },
    cuda: ({ z, bias, residual, gain, decomposed, y, tileAdapter }, gpu) => {
      const [M, N] = [dim(y, 0), dim(y, 1)];
      const kernel = gpu.kernel("dora_forward", { BIAS: flag(bias), RESIDUAL: flag(residual) });
      const grid = [M / kernel.constant("ROWS"), cdiv(N, kernel.constant("BN"))] as const;
      gpu.launch(kernel, grid, { z, bias, residual, gain, decomposed, y, tile_adapter: tileAdapter, N });
    },
  },
);

/**
 * In the tiles of decomposed adapters dm[adapter, n] += inverse[adapter, n] sum_m dy[m, n] z[m, n], then z becomes
 * gain[adapter, n] dy[m, n]; in all other tiles z becomes dy. dm f32[L, N], L strided; an adapter's tiles lie side by side
 * and are summed in order.
 */
export const doraBackward = op<{
  dy: Tensor;
  z: Tensor;
  gain: Tensor;
  inverse: Tensor;
  decomposed: Tensor;
  dm: Tensor;
  tileAdapter: Tensor;
}>(
  "dora_backward",
  { dy: "c M N", z: "c M N", gain: "f32 L N", inverse: "f32 L N", decomposed: "i32 L", dm: "f32 L N" },
  {
    cpu: ({ dy, z, gain, inverse, decomposed, dm, tileAdapter }) => {
      const [rows, width] = [dim(dy, 0), dim(dy, 1)];
      const others = new Set(range(Math.ceil(rows / CPU_ROW_TILE)));
      for (const segment of segments(tileAdapter, rows)) {
        const { row, adapter } = segment;
        if (ints(decomposed)[adapter] !== 1) continue;
        for (let tile = row / CPU_ROW_TILE; tile * CPU_ROW_TILE < row + segment.rows; tile++) others.delete(tile);
        const own = [rowOf(gain, adapter), rowOf(inverse, adapter), rowOf(dm, adapter)] as const;
        c.dora_backward(rowsOf(dy, row).ptr, rowsOf(z, row).ptr, ...own, segment.rows, width);
      }
      for (const tile of others) {
        const count = Math.min(CPU_ROW_TILE, rows - tile * CPU_ROW_TILE);
        base.native_copy(rowsOf(z, tile * CPU_ROW_TILE).ptr, rowsOf(dy, tile * CPU_ROW_TILE).ptr, count * width * F32);
      }
    },
    cuda: ({ dy, z, gain, inverse, decomposed, dm, tileAdapter }, gpu) => {
      const [M, N, L] = [dim(dy, 0), dim(dy, 1), dim(dm, 0)];
      const kernel = gpu.kernel("dora_backward");
      gpu.launch(kernel, [cdiv(N, kernel.constant("BN")), L + M / CUDA_ROW_TILE], {
        ...{ dy, z, gain, inverse, decomposed, dm, tile_adapter: tileAdapter, dm_stride: dm.stride ?? N, L, M, N },
      });
    },
  },
);
