// The low-rank products that stand apart from the frozen one (LoRA, Hu et al. 2021): s = drop(x) A^T, and the gradients.
//
// With y = x W^T + scale s B^T:  ds = scale dy B,  dB = scale dy^T s,  dA = ds^T drop(x).

import { sum } from "../base/shape.ts";
import { rowsOfFloats } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { CUDA_ROW_TILE } from "../device/tile.ts";
import {
  A,
  A_GRADIENT,
  ADAPTER_SPECS,
  type AdapterArgs,
  B,
  B_GRADIENT,
  boundaries,
  columnsIn,
  columnsOf,
  DROPOUT_SPECS,
  type DropoutArgs,
  eachSegment,
  masked,
  rowsOf,
} from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

/** The most chunks of `chunk` tiles that a batch can have, each adapter's tiles being cut on their own. */
const mostChunks = (tiles: number, adapters: number, chunk: number): number =>
  Math.floor((tiles + Math.min(adapters, tiles) * (chunk - 1)) / chunk);

/** s = drop(x) A^T: x c[M, K], s c[E]. */
export const loraDown = op<AdapterArgs & DropoutArgs & { x: Tensor; s: Tensor }>(
  "lora_down",
  { x: "c M K", s: "c E", ...ADAPTER_SPECS, ...DROPOUT_SPECS },
  {
    cpu: (args, host) => {
      const { x, s } = args;
      const width = dim(x, 1);
      eachSegment(args, dim(x, 0), (segment, targets) => {
        const input = masked(host, args, segment); // once for all linears of the group
        for (const { rank, low, matrix } of targets)
          host.product([segment.rows, rank, width], input, false, { ptr: matrix(A), ld: width }, true, low(s));
      });
    },
    cuda: ({ x, s, lowAt, factors, ranks, tileAdapter, rowNumber, dropout, module }, gpu) => {
      const [M, K, E] = [dim(x, 0), dim(x, 1), dim(s, 0)];
      const kernel = gpu.kernel("lora_down", { G: dim(ranks, 1) });
      const [BM, BK] = [kernel.constant("BM"), kernel.constant("BK")];
      const partBlocks = cdiv(kernel.constant("PART"), BK);
      const parts = cdiv(cdiv(K, BK), partBlocks);
      const scratch = parts > 1 ? gpu.scratch(parts * E * 4) : null;
      gpu.launch(kernel, [M / BM, parts], {
        ...{ x, s, scratch, low_at: lowAt, factors, ranks, tile_adapter: tileAdapter, row_number: rowNumber, dropout, module },
        ...{ factors_stride: strideOf(factors), ranks_stride: strideOf(ranks), M, K, E, part_blocks: partBlocks },
      });
      if (parts === 1) return;
      const add = gpu.kernel("lora_down_sum");
      gpu.launch(add, [cdiv(E, add.constant("BLOCK"))], { s, scratch, parts, size: E });
    },
  },
);

/** In one read of dy c[M, N]: ds = scale dy B, ds c[E]; the gradient of B += scale dy^T s. */
export const loraUpGrad = op<
  AdapterArgs & { dy: Tensor; s: Tensor; scale: Tensor; firstColumn: readonly number[]; ds: Tensor }
>(
  "lora_up_grad",
  { dy: "c M N", s: "c E", scale: "f32 L G", ds: "c E", ...ADAPTER_SPECS },
  {
    cpu: (args, host) => {
      const { dy, s, ds } = args;
      const scales = rowsOfFloats(args.scale);
      eachSegment(args, dim(dy, 0), ({ row, rows, adapter }, targets) => {
        for (const { g, rank, low, matrix } of targets) {
          const [first, columns] = columnsIn(args.firstColumn, g);
          const scale = scales(adapter)[g]!;
          const dyRows = columnsOf(rowsOf(dy, row), first);
          host.product([rows, rank, columns], dyRows, false, { ptr: matrix(B), ld: columns }, true, low(ds), scale);
          const gradient = { ptr: matrix(B_GRADIENT), ld: columns };
          host.product([rank, columns, rows], low(s), true, dyRows, false, gradient, scale, 1);
        }
      });
    },
    cuda: ({ dy, s, ds, lowAt, factors, scale, ranks, tileAdapter, firstColumn }, gpu) => {
      const [M, N, E, L] = [dim(dy, 0), dim(dy, 1), dim(s, 0), dim(ranks, 0)];
      const kernel = gpu.kernel("lora_up_grad", { G: dim(ranks, 1) });
      const [BN, CHUNK] = [kernel.constant("BN"), kernel.constant("CHUNK")];
      const { first1, first2 } = boundaries(firstColumn);
      const blocks = sum(firstColumn.slice(1).map((last, g) => cdiv(last - firstColumn[g]!, BN)));
      const dsBytes = blocks * E * 4;
      const ds_part = gpu.scratch(dsBytes + cdiv(E, CUDA_ROW_TILE * CHUNK) * N * 4);
      const shared = { ds_part, db_part: ds_part + dsBytes, scale, ranks, factors, low_at: lowAt, tile_adapter: tileAdapter };
      const strides = { factors_stride: strideOf(factors), ranks_stride: strideOf(ranks) };
      gpu.launch(kernel, [blocks, mostChunks(M / CUDA_ROW_TILE, L, CHUNK)], {
        dy,
        s,
        ds,
        ...shared,
        ...strides,
        M,
        N,
        E,
        first1,
        first2,
      });
    },
  },
);

/** The gradient of A += ds^T drop(x): x c[M, K], ds c[E]. */
export const loraDownGrad = op<AdapterArgs & DropoutArgs & { x: Tensor; ds: Tensor }>(
  "lora_down_grad",
  { x: "c M K", ds: "c E", ...ADAPTER_SPECS, ...DROPOUT_SPECS },
  {
    cpu: (args, host) => {
      const { x, ds } = args;
      const width = dim(x, 1);
      eachSegment(args, dim(x, 0), (segment, targets) => {
        const input = masked(host, args, segment);
        for (const { rank, low, matrix } of targets) {
          const gradient = { ptr: matrix(A_GRADIENT), ld: width };
          host.product([rank, width, segment.rows], low(ds), true, input, false, gradient, 1, 1);
        }
      });
    },
    cuda: ({ x, ds, lowAt, factors, ranks, tileAdapter, rowNumber, dropout, module }, gpu) => {
      const [M, K, E, L] = [dim(x, 0), dim(x, 1), dim(ds, 0), dim(ranks, 0)];
      const kernel = gpu.kernel("lora_down_grad", { G: dim(ranks, 1) });
      const [BK, CHUNK] = [kernel.constant("BK"), kernel.constant("CHUNK")];
      const scratch = gpu.scratch(cdiv(E, CUDA_ROW_TILE * CHUNK) * K * 4);
      gpu.launch(kernel, [cdiv(K, BK), mostChunks(M / CUDA_ROW_TILE, L, CHUNK)], {
        ...{ x, ds, row_number: rowNumber, dropout, module, scratch, low_at: lowAt, factors, ranks, tile_adapter: tileAdapter },
        ...{ factors_stride: strideOf(factors), ranks_stride: strideOf(ranks), M, K, E },
      });
    },
  },
);
