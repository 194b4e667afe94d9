// A linear layer over few rows, each with its own adapter: what tokens that are generated pass. On GPUs it is bound by reading
// the weight once (kernels/triton/fewrows.py).

import { base } from "../../ffi/native.ts";
import { alignUp, sizeOf } from "../base/shape.ts";
import { rowsFrom } from "../device/arena.ts";
import { addressesIn, ints, rowsOfFloats, rowsOfInts } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { fewRowsPieces, fewRowsScratch, LOW_PART, MOST_ROWS } from "../device/fewrows.ts";
import { isPacked, type Weight } from "../device/packed.ts";
import { RANK_TILE } from "../methods/layout.ts";
import { addBias, frozen } from "./linear/frozen.ts";
import { A, B, boundaries, columnsIn, columnsOf, F32, type RankSpan, rowsOf } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { denseOf } from "./packed.ts";

/** The adapters of rows: tables as ops/linear/low-rank.ts says, and `rowAdapter` i32[M], -1 for the base alone. */
export type RowAdapters = {
  readonly span: RankSpan;
  readonly rowAdapter: Tensor;
  readonly factors: Tensor;
  readonly ranks: Tensor;
  readonly scale: Tensor;
  readonly firstColumn: readonly number[];
};

export type FewRows = {
  readonly x: Tensor;
  readonly weight: Weight;
  readonly bias: Tensor | null;
  readonly residual: Tensor | null;
  readonly y: Tensor;
  readonly lora: RowAdapters | null;
};

/**
 * y = x W^T + bias + residual + scale B A x, the adapter of each row its own: x c[M, K], weight c[N, K] or packed (not fp8),
 * bias c[N] or null, residual c[M, N] (may be y) or null, y c[M, N], any M. No row's numbers depend on others or on M.
 */
export const fewRowsForward = op<FewRows>(
  "fewrows_forward",
  {
    ...{ x: "c M K", weight: "w N K", bias: "c N", residual: "c M N", y: "c M N" },
    ...{ rowAdapter: "i32 M", factors: "i64 L G 4", ranks: "i32 L G", scale: "f32 L G" },
  },
  {
    cpu: ({ x, weight, bias, residual, y, lora }, host) => {
      if (residual && residual.ptr !== y.ptr) base.native_copy(y.ptr, residual.ptr, sizeOf(y.shape) * F32);
      if (bias) addBias(y, bias, residual !== null);
      frozen(host, x, weight, true, y, residual || bias ? 1 : 0);
      if (!lora) return;
      const [adapters, ranks, scales] = [ints(lora.rowAdapter), rowsOfInts(lora.ranks), rowsOfFloats(lora.scale)];
      const addresses = addressesIn(lora.factors);
      for (const [m, adapter] of adapters.entries()) {
        if (adapter < 0) continue;
        for (const [g, rank] of ranks(adapter).entries()) {
          if (rank === 0) continue;
          const [first, columns] = columnsIn(lora.firstColumn, g);
          const low = { ptr: host.scratch(alignUp(rank, RANK_TILE) * F32), ld: rank };
          const [a, b] = [A, B].map((which) => addresses(adapter, g, which!));
          host.product([1, rank, dim(x, 1)], rowsOf(x, m), false, { ptr: a!, ld: dim(x, 1) }, true, low);
          host.product(
            [1, columns, rank],
            low,
            false,
            { ptr: b!, ld: columns },
            false,
            columnsOf(rowsOf(y, m), first),
            scales(adapter)[g]!,
            1,
          );
        }
      }
    },
    cuda: (args, gpu) => {
      const rows = dim(args.x, 0);
      const w = denseOf(gpu, args.weight);
      for (let from = 0; from < rows; from += MOST_ROWS) launchRows(gpu, args, w, from, Math.min(MOST_ROWS, rows - from));
    },
  },
);

/** `rows` rows from `from` on; w is the weight as the device computes. */
function launchRows(gpu: Launcher, args: FewRows, w: Tensor, from: number, rows: number): void {
  const part = (t: Tensor) => rowsFrom(t, from, rows);
  const [x, y, residual, { bias, lora }] = [part(args.x), part(args.y), args.residual && part(args.residual), args];
  const [M, K, N] = [rows, dim(x, 1), dim(w, 0)];
  const G = lora ? dim(lora.ranks, 1) : 1;
  const W = lora ? G * alignUp(lora.span.most, RANK_TILE) : 0;
  const scratch = fewRowsScratch({ M, K, N, W, dense: isPacked(args.weight) ? w : null });
  const begin = gpu.scratch(scratch.bytes);
  const parts = { part: begin + scratch.part, low: begin + scratch.low };
  const tables = {
    ...{ factors: lora?.factors ?? null, ranks: lora?.ranks ?? null, row_adapter: lora ? part(lora.rowAdapter) : null, G },
    ...{ factors_stride: lora ? strideOf(lora.factors) : 0, ranks_stride: lora ? strideOf(lora.ranks) : 0 },
  };
  const { count: pieces, columns } = fewRowsPieces(N, K);
  const product = holdingRows(gpu.variants("fewrows_product"), M);
  const [BM, BN, BK] = [product.constant("BM"), product.constant("BN"), product.constant("BK")];
  const lowPieces = cdiv(K, LOW_PART);
  const frozenProduct = () =>
    gpu.launch(product, [cdiv(N, BN), pieces, cdiv(M, BM)], { x, w, part: parts.part, M, N, K, piece: columns / BK });
  if (lora) {
    const kernel = gpu.kernel("fewrows_low");
    const grid = [cdiv(M, kernel.constant("BM")), cdiv(W, kernel.constant("BJ")), lowPieces] as const;
    gpu.concurrently(frozenProduct, () => gpu.launch(kernel, grid, { x, low: parts.low, ...tables, M, K, W }));
  } else frozenProduct();
  const sum = gpu.kernel("fewrows_sum", { BIAS: flag(bias), RESIDUAL: flag(residual), LORA: flag(lora) });
  const firstColumn = lora?.firstColumn ?? [0, N];
  const blocks = firstColumn.slice(1).reduce((all, last, g) => all + cdiv(last - firstColumn[g]!, sum.constant("BN")), 0);
  gpu.launch(sum, [blocks, cdiv(M, sum.constant("BM"))], {
    ...{ ...parts, y, bias, residual, ...tables, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0 },
    ...{ M, N, pieces, low_pieces: lowPieces, W, ...boundaries(firstColumn) },
  });
}

/** The variant whose tile holds these rows, or the largest, of which there are several then: all have the same sums. */
const holdingRows = (variants: readonly Variant[], rows: number): Variant =>
  variants.find((variant) => variant.constant("BM") >= rows) ?? variants.at(-1)!;
