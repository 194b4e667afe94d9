// The low-rank products that stand apart from the frozen one (LoRA, Hu et al. 2021): s = drop(x) A^T, and the gradients.
//
// With y = x W^T + scale s B^T:  ds = scale dy B,  dB = scale dy^T s,  dA = ds^T drop(x).

import { base } from "../../ffi/native.ts";
import { sum } from "../base/shape.ts";
import { floats } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { CUDA_ROW_TILE } from "../device/tile.ts";
import {
  type AdapterArgs,
  boundaries,
  columnsOf,
  type DropoutArgs,
  eachTarget,
  F32,
  masked,
  partOf,
  rowsOf,
  type Segment,
  shapeOf,
} from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

const dropout = { rowNumber: "i32 M", dropout: "i32 L 4" };

const clear = (t: Tensor): void => base.native_zero(t.ptr, dim(t, 0) * dim(t, 1) * F32);

/** The most chunks of `chunk` tiles that a batch can have, each adapter's tiles being cut on their own. */
const mostChunks = (tiles: number, adapters: number, chunk: number): number =>
  Math.floor((tiles + Math.min(adapters, tiles) * (chunk - 1)) / chunk);

/** s[m, g R + r] = sum_k drop(x)[m, k] a[adapter, g R + r, k]: x c[M, K], a c[L, G R, K], s c[M, G R]. */
export const loraDown = op<AdapterArgs & DropoutArgs & { x: Tensor; a: Tensor; s: Tensor }>(
  "lora_down",
  { x: "c M K", a: "c L S K", s: "c M S", ranks: "i32 L G", ...dropout },
  {
    cpu: (args, host) => {
      const { x, a, s } = args;
      const padded = dim(s, 1) / dim(args.ranks, 1);
      clear(s);
      let current: Segment | null = null;
      let input = rowsOf(x);
      eachTarget(args, dim(x, 0), (segment, g, rank) => {
        if (segment !== current) input = masked(host, args, segment); // once for all linears of the group
        current = segment;
        const to = columnsOf(rowsOf(s, segment.row), g * padded);
        host.product([segment.rows, rank, dim(x, 1)], input, false, partOf(a, segment.adapter, g * padded), true, to);
      });
    },
    cuda: ({ x, a, s, ranks, tileAdapter, rowNumber, dropout, module }, gpu) => {
      const [M, K, S] = [dim(x, 0), dim(x, 1), dim(s, 1)];
      const kernel = gpu.kernel("lora_down", shapeOf(s, dim(ranks, 1)));
      const [BM, BK, CB] = [kernel.constant("BM"), kernel.constant("BK"), kernel.constant("CB")];
      const partBlocks = cdiv(kernel.constant("PART"), BK);
      const parts = cdiv(cdiv(K, BK), partBlocks);
      const scratch = parts > 1 ? gpu.scratch(parts * M * S * 4) : null;
      gpu.launch(kernel, [M / BM, parts, cdiv(S, CB)], {
        ...{ x, a, s, scratch, ranks, tile_adapter: tileAdapter, row_number: rowNumber, dropout, module },
        ...{ a_stride: strideOf(a), M, K, part_blocks: partBlocks },
      });
      if (parts === 1) return;
      const add = gpu.kernel("lora_down_sum");
      gpu.launch(add, [cdiv(M * S, add.constant("BLOCK"))], { s, scratch, parts, size: M * S });
    },
  },
);

/**
 * In one read of dy c[M, N]: ds[m, g R + r] = scale sum_n dy[m, n] b[adapter, n, r] over the columns of linear g, ds c[M, G
 * R]; db[adapter, n, r] += scale sum_m dy[m, n] s[m, g R + r], db f32[L, N, R].
 */
export const loraUpGrad = op<
  AdapterArgs & {
    dy: Tensor;
    s: Tensor;
    b: Tensor;
    scale: Tensor;
    firstColumn: readonly number[];
    ds: Tensor;
    db: Tensor;
  }
>(
  "lora_up_grad",
  { dy: "c M N", s: "c M S", b: "c L N R", scale: "f32 L G", ranks: "i32 L G", ds: "c M S", db: "f32 L N R" },
  {
    cpu: (args, host) => {
      const { dy, s, b, ds, db } = args;
      const linears = dim(args.ranks, 1);
      const padded = dim(s, 1) / linears;
      const scales = floats(args.scale);
      clear(ds);
      eachTarget(args, dim(dy, 0), (segment, g, rank) => {
        const first = args.firstColumn[g]!;
        const columns = args.firstColumn[g + 1]! - first;
        const scale = scales[segment.adapter * linears + g]!;
        const dyRows = columnsOf(rowsOf(dy, segment.row), first);
        const sRows = columnsOf(rowsOf(s, segment.row), g * padded);
        const dsRows = columnsOf(rowsOf(ds, segment.row), g * padded);
        const up = partOf(b, segment.adapter, first);
        host.product([segment.rows, rank, columns], dyRows, false, up, false, dsRows, scale);
        const upGrad = partOf(db, segment.adapter, first);
        host.product([columns, rank, segment.rows], dyRows, true, sRows, false, upGrad, scale, 1);
      });
    },
    cuda: ({ dy, s, b, scale, firstColumn, ds, db, ranks, tileAdapter }, gpu) => {
      const [M, N, L, S] = [dim(dy, 0), dim(dy, 1), dim(b, 0), dim(s, 1)];
      const { G, R } = shapeOf(s, dim(ranks, 1));
      const tiles = M / CUDA_ROW_TILE;
      const kernel = gpu.kernel("lora_up_grad", { G, R });
      const [RB, BN, CHUNK] = [kernel.constant("RB"), kernel.constant("BN"), kernel.constant("CHUNK")];
      const { first1, first2 } = boundaries(firstColumn);
      const blocks = sum(firstColumn.slice(1).map((last, g) => cdiv(last - firstColumn[g]!, BN)));
      const dsBytes = blocks * M * R * 4;
      const ds_part = gpu.scratch(dsBytes + cdiv(tiles, CHUNK) * N * R * 4);
      const shared = { db, ds_part, db_part: ds_part + dsBytes, scale, ranks, tile_adapter: tileAdapter };
      const sizes = { db_stride: strideOf(db), M, N, first1, first2 };
      gpu.launch(kernel, [blocks, mostChunks(tiles, L, CHUNK), R / RB], {
        ...{ dy, s, b, b_stride: strideOf(b), ...shared, ...sizes },
      });
      const add = gpu.kernel("lora_up_grad_sum", { G, R });
      const later = tiles > CHUNK ? L * cdiv(N * R, add.constant("BLOCK")) : 0;
      gpu.launch(add, [(M / add.constant("ROWS")) * ((S / RB) | 0) + later], { ds, ...shared, ...sizes });
    },
  },
);

/** da[adapter, g R + r, k] += sum_m ds[m, g R + r] drop(x)[m, k]: x c[M, K], ds c[M, G R], da f32[L, G R, K]. */
export const loraDownGrad = op<AdapterArgs & DropoutArgs & { x: Tensor; ds: Tensor; da: Tensor }>(
  "lora_down_grad",
  { x: "c M K", ds: "c M S", da: "f32 L S K", ranks: "i32 L G", ...dropout },
  {
    cpu: (args, host) => {
      const { x, ds, da } = args;
      const padded = dim(ds, 1) / dim(args.ranks, 1);
      let current: Segment | null = null;
      let input = rowsOf(x);
      eachTarget(args, dim(x, 0), (segment, g, rank) => {
        if (segment !== current) input = masked(host, args, segment);
        current = segment;
        const dsRows = columnsOf(rowsOf(ds, segment.row), g * padded);
        const downGrad = partOf(da, segment.adapter, g * padded);
        host.product([rank, dim(x, 1), segment.rows], dsRows, true, input, false, downGrad, 1, 1);
      });
    },
    cuda: ({ x, ds, da, ranks, tileAdapter, rowNumber, dropout, module }, gpu) => {
      const [M, K, L, S] = [dim(x, 0), dim(x, 1), dim(da, 0), dim(ds, 1)];
      const choice = shapeOf(ds, dim(ranks, 1));
      const tiles = M / CUDA_ROW_TILE;
      const kernel = gpu.kernel("lora_down_grad", choice);
      const [BK, CB, CHUNK] = [kernel.constant("BK"), kernel.constant("CB"), kernel.constant("CHUNK")];
      const scratch = gpu.scratch(cdiv(tiles, CHUNK) * S * K * 4);
      const shared = { da, scratch, ranks, tile_adapter: tileAdapter, da_stride: strideOf(da), M, K };
      gpu.launch(kernel, [cdiv(K, BK), mostChunks(tiles, L, CHUNK), cdiv(S, CB)], {
        ...{ x, ds, row_number: rowNumber, dropout, module, ...shared },
      });
      const add = gpu.kernel("lora_down_grad_sum", choice);
      if (tiles <= CHUNK) return;
      gpu.launch(add, [L, cdiv(S * K, add.constant("BLOCK"))], shared);
    },
  },
);
