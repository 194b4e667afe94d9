// What adapters change of embedding and head for few rows, each with its own adapter: what tokens that are generated pass.
// tables.ts has the same for tiles, and says how the tables of adapters lie.

import { rowsFrom } from "../device/arena.ts";
import { addressesIn, floats, ints, rowsOfFloats, rowsOfInts } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import type { Weight } from "../device/packed.ts";
import { computeRows, PRODUCT, productOfRows, type RowAdapters } from "./fewrows.ts";
import type { RankSpan } from "./linear/low-rank.ts";
import { A, B } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";

type Tables = { readonly rowAdapter: Tensor; readonly factors: Tensor; readonly ranks: Tensor };
const SPECS = { rowAdapter: "i32 M", factors: "i64 L G 4", ranks: "i32 L G", scale: "f32 L G" };

const floatsAt = (ptr: number, size: number) => floats({ ptr, dtype: "f32", shape: [size] });

/** table_forward of rows that find their own adapters, without what a backward pass reads. */
export const fewEmbed = op<Tables & { x: Tensor; ids: Tensor; tokenRow: Tensor; scale: Tensor }>(
  "fewtables_embed",
  { x: "c M H", ids: "i32 M", tokenRow: "i32 M", ...SPECS },
  {
    cpu: ({ x, ids, tokenRow, scale, rowAdapter, factors, ranks }) => {
      const [H, values, tokens, rows] = [dim(x, 1), floats(x), ints(ids), ints(tokenRow)];
      const [own, scales, at] = [rowsOfInts(ranks), rowsOfFloats(scale), addressesIn(factors)];
      for (const [m, adapter] of ints(rowAdapter).entries()) {
        const first = adapter < 0 ? 0 : at(adapter, 0, A);
        if (first === 0) continue;
        const [rank, to] = [own(adapter)[0]!, values.subarray(m * H, (m + 1) * H)];
        if (rows[m]! >= 0) to.set(floatsAt(first + 4 * rows[m]! * H, H));
        if (rank === 0) continue;
        const [b, a] = [floatsAt(first + 4 * tokens[m]! * rank, rank), floatsAt(at(adapter, 0, B), rank * H)];
        for (let h = 0; h < H; h++) to[h]! += scales(adapter)[0]! * b.reduce((all, value, r) => all + value * a[r * H + h]!, 0);
      }
    },
    cuda: ({ x, ids, tokenRow, scale, rowAdapter, factors, ranks }, gpu) => {
      const [kernel, H] = [gpu.kernel("fewtables_embed"), dim(x, 1)];
      gpu.launch(kernel, [dim(x, 0), cdiv(H, kernel.constant("BLOCK"))], {
        ...{ x, ids, token_row: tokenRow, factors, scale, ranks, row_adapter: rowAdapter, H },
        ...{ factors_stride: strideOf(factors), scale_stride: strideOf(scale), ranks_stride: strideOf(ranks) },
      });
    },
  },
);

/** Of the head: `ranks` are of adapters with a product, `downRanks` those or how many tokens they train (tables.ts). */
export type HeadAdapters = Omit<RowAdapters, "gains"> & {
  readonly downRanks: Tensor;
  readonly tokens: Tensor;
  /** Trained tokens of an adapter of these rows, at most. */
  readonly mostTokens: number;
  readonly products: RankSpan | null;
};

/** y c[M, V] = x W^T + scale B A x, or, of tokens whose rows an adapter trains, these rows times x: x c[M, K], W c[V, K]. */
export const fewHead = op<{ x: Tensor; weight: Weight; y: Tensor; lora: HeadAdapters }>(
  "fewtables_head",
  { ...PRODUCT, y: "c M N", downRanks: "i32 L G", tokens: "i64 L G 4" },
  {
    cpu: (args, host) => {
      const { x, weight, y, lora } = args;
      computeRows({ x, weight, bias: null, residual: null, y, lora: { ...lora, gains: null } }, host);
      const [K, V, rows, logits] = [dim(x, 1), dim(y, 1), floats(x), floats(y)];
      const [ids, count, at] = [addressesIn(lora.tokens), rowsOfInts(lora.downRanks), addressesIn(lora.factors)];
      for (const [m, adapter] of ints(lora.rowAdapter).entries()) {
        const own = adapter < 0 ? 0 : ids(adapter, 0, 0);
        if (own === 0) continue;
        const [tokens, row] = [count(adapter)[0]!, rows.subarray(m * K, (m + 1) * K)];
        const trained = floatsAt(at(adapter, 0, A), tokens * K);
        for (const [i, id] of ints({ ptr: own, dtype: "i32", shape: [tokens] }).entries())
          logits[m * V + id] = row.reduce((all, value, k) => all + value * trained[i * K + k]!, 0);
      }
    },
    cuda: ({ x, weight, y, lora }, gpu) => {
      const { tokens, mostTokens, downRanks, ranks, products } = lora;
      const down = { ...lora, ranks: downRanks, gains: null };
      productOfRows(gpu, { x, weight, bias: null, lora: down }, (parts, { rows, from }) => {
        const sum = gpu.kernel("fewrows_sum", { LORA: flag(products) });
        const put = gpu.kernel("fewtables_put");
        const logits = rowsFrom(y, from, rows);
        gpu.launch(sum, [cdiv(dim(y, 1), sum.constant("BN")), cdiv(rows, sum.constant("BM"))], {
          ...{ ...parts, ranks, ranks_stride: strideOf(ranks), y: logits, residual: null },
          has_residual: 0,
        });
        if (mostTokens === 0) return;
        gpu.launch(put, [rows, cdiv(mostTokens, put.constant("BLOCK"))], {
          ...{ ...parts, ranks: downRanks, ranks_stride: strideOf(downRanks), logits, tokens, V: dim(y, 1) },
          tokens_stride: strideOf(tokens),
        });
      });
    },
  },
);
