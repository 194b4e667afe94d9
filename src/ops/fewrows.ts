// A linear layer over few rows, each with its own adapter: what tokens that are generated pass. On GPUs it is bound by reading
// the weight once (kernels/triton/fewrows.py).

import { base } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { PackedFormat } from "../base/precision.ts";
import { alignUp, sizeOf } from "../base/shape.ts";
import { rowsFrom } from "../device/arena.ts";
import { addressesIn, floats, type Host, ints, rowsOfFloats, rowsOfInts } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { fewRowsPieces, fewRowsScratch, LOW, MOST_ROWS, type Reading, readingOf } from "../device/fewrows.ts";
import { isPacked, type PackedWeight, type Weight } from "../device/packed.ts";
import { RANK_TILE } from "../methods/layout.ts";
import { GAIN } from "./dora.ts";
import { codesOf, FORMATS } from "./fewrows/packed.ts";
import { addBias, frozen } from "./linear/frozen.ts";
import { A, B, boundaries, columnsIn, columnsOf, F32, type RankSpan, rowsOf } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { denseOf, roundRows } from "./packed.ts";

/**
 * The adapters of rows: tables as ops/linear/low-rank.ts says, and `rowAdapter` i32[M], -1 for the base alone. What the layer
 * and an adapter come to is multiplied by the gain that is among its `vectors` where `decomposed` i32[L] is 1 (ops/dora.ts).
 */
export type RowAdapters = {
  readonly span: RankSpan;
  readonly rowAdapter: Tensor;
  readonly factors: Tensor;
  readonly ranks: Tensor;
  readonly scale: Tensor;
  readonly firstColumn: readonly number[];
  readonly gains: { readonly vectors: Tensor; readonly decomposed: Tensor } | null;
};

/** What rows are multiplied with. */
export type RowProduct = {
  readonly x: Tensor;
  readonly weight: Weight;
  readonly bias: Tensor | null;
  readonly lora: RowAdapters | null;
};

export type FewRows = RowProduct & { readonly residual: Tensor | null; readonly y: Tensor };

/** Types and shapes of what rows are multiplied with. */
export const PRODUCT = {
  ...{ x: "c M K", weight: "w N K", bias: "c N" },
  ...{ rowAdapter: "i32 M", factors: "i64 L G 4", ranks: "i32 L G", scale: "f32 L G" },
};

/**
 * y = gain (x W^T + scale B A x) + bias + residual, the adapter of each row its own: x c[M, K], weight c[N, K] or packed,
 * bias c[N] or null, residual c[M, N] (may be y) or null, y c[M, N], any M. No row depends on others or on M.
 */
export const fewRowsForward = op<FewRows>(
  "fewrows_forward",
  { ...PRODUCT, residual: "c M N", y: "c M N" },
  {
    cpu: (args, host) => computeRows(args, host),
    cuda: (args, gpu) => {
      const { residual, y } = args;
      productOfRows(gpu, args, (parts, { rows, from, firstColumn }) => {
        const kernel = gpu.kernel("fewrows_sum", { LORA: flag(args.lora) });
        const width = kernel.constant("BN");
        const blocks = firstColumn.slice(1).reduce((all, last, g) => all + cdiv(last - firstColumn[g]!, width), 0);
        const part = (t: Tensor) => rowsFrom(t, from, rows);
        const io = { y: part(y), residual: residual && part(residual) };
        gpu.launch(kernel, [blocks, cdiv(rows, kernel.constant("BM"))], { ...parts, ...io, has_residual: flag(residual) });
      });
    },
  },
);

/** The same on a CPU. */
export function computeRows({ x, weight, bias, residual, y, lora }: FewRows, host: Host): void {
  const gains = lora?.gains ?? null;
  invariant(!gains || !residual || residual.ptr !== y.ptr, "rows with a gain read the residual after y was written");
  if (residual && !gains && residual.ptr !== y.ptr) base.native_copy(y.ptr, residual.ptr, sizeOf(y.shape) * F32);
  if (bias && !gains) addBias(y, bias, residual !== null);
  frozen(host, x, weight, true, y, (residual || bias) && !gains ? 1 : 0);
  if (lora) addLowRank(x, y, lora, host);
  if (!lora || !gains) return;
  const [N, adapters, values] = [dim(y, 1), ints(lora.rowAdapter), floats(y)];
  const [vector, isOwn] = [addressesIn(gains.vectors), rowsOfInts(gains.decomposed)];
  for (const [m, adapter] of adapters.entries()) {
    if (adapter < 0 || isOwn(adapter)[0] !== 1) continue;
    const gain = floats({ ptr: vector(adapter, 0, GAIN), dtype: "f32", shape: [N] });
    for (let n = 0; n < N; n++) values[m * N + n]! *= gain[n]!;
  }
  const more = [...(residual ? [floats(residual)] : []), ...(bias ? [floats(bias)] : [])];
  for (const of of more) for (let i = 0; i < values.length; i++) values[i]! += of[i % of.length]!;
}

function addLowRank(x: Tensor, y: Tensor, lora: RowAdapters, host: Host): void {
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
      const [factor, to] = [{ ptr: b!, ld: columns }, columnsOf(rowsOf(y, m), first)];
      host.product([1, columns, rank], low, false, factor, false, to, scales(adapter)[g]!, 1);
    }
  }
}

/** Rows whose product is in scratch, from `from` on, and where the linears of the group begin. */
export type RowsOfProduct = { readonly from: number; readonly rows: number; readonly firstColumn: readonly number[] };

/**
 * Launches products of as many rows as scratch holds, and after each what `finish` launches of the sums: it is given the
 * arguments that kernels need for these. They overwrite each other's scratch.
 */
export function productOfRows(
  gpu: Launcher,
  args: RowProduct,
  finish: (parts: Readonly<Record<string, Tensor | number | null>>, of: RowsOfProduct) => void,
): void {
  const rows = dim(args.x, 0);
  const { weight } = args;
  const [N, K] = weight.shape as [number, number];
  const reading = readingOf(gpu.compute, isPacked(weight) ? weight.format : "dense", K);
  const w = reading === "dense" || reading === "apart" ? denseOf(gpu, weight) : null;
  for (let from = 0; from < rows; from += MOST_ROWS) {
    const of = { from, rows: Math.min(MOST_ROWS, rows - from), firstColumn: args.lora?.firstColumn ?? [0, N] };
    finish(launchProduct(gpu, args, { w, reading }, of), of);
  }
}

/** `w`: the weight as the device computes; null where its codes are read. */
type Read = { readonly w: Tensor | null; readonly reading: Reading };

function launchProduct(gpu: Launcher, args: RowProduct, { w, reading }: Read, { from, rows: M, firstColumn }: RowsOfProduct) {
  const { bias, lora, weight } = args;
  const part = (t: Tensor) => rowsFrom(t, from, M);
  const x = part(args.x);
  const [N, K] = weight.shape as [number, number];
  const G = lora ? dim(lora.ranks, 1) : 1;
  const W = lora ? G * alignUp(lora.span.most, RANK_TILE) : 0;
  const scratch = fewRowsScratch({ M, K, N, W, reading, compute: gpu.compute });
  const begin = gpu.scratch(scratch.bytes);
  const parts = { part: begin + scratch.part, low: begin + scratch.low };
  const tables = {
    ...{ factors: lora?.factors ?? null, ranks: lora?.ranks ?? null, row_adapter: lora ? part(lora.rowAdapter) : null, G },
    ...{ factors_stride: lora ? strideOf(lora.factors) : 0, ranks_stride: lora ? strideOf(lora.ranks) : 0 },
  };
  const packed = isPacked(weight) && !w ? weight : null;
  const { count, columns } = fewRowsPieces(N, K, reading);
  const lowPieces = cdiv(K, LOW.part);
  const lows = lora ? cdiv(M, LOW.rows) * cdiv(W, LOW.columns) * lowPieces : 0;
  const tilesOf = (of: Variant) => cdiv(N, of.constant("BN")) * count * cdiv(M, of.constant("BM"));
  const kernel = productFor(gpu, M, flag(lora), packed, (of) => lows + tilesOf(of));
  const BK = kernel.constant("BK");
  const pieces = kernel.constant("SUMS") === 0 ? count : 1;
  const rows = { rows: x, x_scale: begin + scratch.scale };
  if (reading === "fp8") {
    roundRows(gpu, x, null, { codes: begin, scale: rows.x_scale });
    rows.rows = { ptr: begin, dtype: "u8", shape: [M, K] };
  }
  const codes = packed && codesOf(packed);
  const values = codes && kernel.constant("APART") === 1 ? valuesOfCodes(gpu, codes.w, [N, K], begin) : null;
  gpu.launch(kernel, [lows + (tilesOf(kernel) / count) * pieces], {
    ...{ x, ...(codes ? { ...rows, ...codes, ...(values && { w: values }) } : { rows: x, w }) },
    ...{ ...parts, ...tables, M, N, K, W, piece: columns / BK, lows },
  });
  const gains = lora?.gains ?? null;
  return {
    ...{ vectors: gains?.vectors ?? null, vectors_stride: gains ? strideOf(gains.vectors) : 0, has_gains: flag(gains) },
    ...{ decomposed: gains?.decomposed ?? null, decomposed_stride: gains ? strideOf(gains.decomposed) : 0 },
    ...{ ...parts, ...tables, bias, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0 },
    ...{ has_bias: flag(bias), M, N, pieces, low_pieces: lowPieces, W, ...boundaries(firstColumn) },
  };
}

/**
 * The kernel that multiplies rows by gate and up, and makes of both what SwiGLU makes of them: of sums that are a single piece
 * and nothing else. Null where another sums.
 */
export function gatedFor(gpu: Launcher, { x, weight, bias, lora }: RowProduct): Variant | null {
  const [N, K] = weight.shape as [number, number];
  if (bias || lora || isPacked(weight) || fewRowsPieces(N, K, "dense").count > 1) return null;
  const product = productFor(gpu, dim(x, 0), 0, null);
  if (product.row.constants["STAGES"] === undefined) return null; // not of Hopper, or of too many rows
  return gpu.kernel("fewrows_gated", { BM: product.constant("BM") });
}

/** What the codes of a weight in nf4 stand for, without their scales, at `ptr`. */
function valuesOfCodes(gpu: Launcher, codes: Tensor, shape: Tensor["shape"], ptr: number): Tensor {
  const [kernel, size] = [gpu.kernel("fewrows_values"), sizeOf(shape)];
  const values: Tensor = { ptr, dtype: "i32", shape: [size / 2] };
  gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { codes, values, size });
  return { ptr, dtype: "bf16", shape };
}

/**
 * The variant whose tile holds these rows; more rows are several tiles, whose weights are read by one after the other. Of
 * several with the same bits the first of which all programs run at once.
 */
function productFor(
  gpu: Launcher,
  rows: number,
  LOW: 0 | 1,
  packed: PackedWeight | null,
  programs: (of: Variant) => number = () => 0,
): Variant {
  if (packed) return packedFor(gpu, rows, packed.format);
  const [name, choice] = ["fewrows_product", { LOW }] as const;
  const all = gpu.variants(name, { SUMS: 0, ...choice });
  const first = all.find((variant) => variant.constant("BM") >= rows);
  const isAlike = ({ row }: Variant) =>
    row.launch["TOGETHER"] !== undefined && row.constants["BM"] === first!.row.constants["BM"];
  const alike = (first ? all.filter(isAlike) : []).map(({ row }) => {
    const { BM, STAGES } = row.constants as { BM: number; STAGES: number };
    return gpu.kernel(name, { SUMS: 0, ...choice, BM, STAGES }); // another batch may take another of them
  });
  const atOnce = (of: Variant) => programs(of) <= of.constant("TOGETHER") * gpu.multiprocessors;
  const found = alike.length > 1 ? (alike.find(atOnce) ?? alike.at(-1)) : first;
  return found ?? gpu.kernel(name, { SUMS: 1, ...choice });
}

/**
 * The same of a product over codes, or over their values: each variant says from and up to how many rows it is taken, and above
 * how many it is again.
 */
function packedFor(gpu: Launcher, rows: number, format: PackedFormat): Variant {
  const isFor = ({ row: { launch } }: Variant) =>
    (rows >= (launch["FROM"] ?? 0) && rows <= launch["UNTIL"]!) || rows > (launch["ABOVE"] ?? MOST_ROWS);
  return gpu.variants("fewrows_packed", { FORMAT: FORMATS[format]! }).find(isFor)!;
}
