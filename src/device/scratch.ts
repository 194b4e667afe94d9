// How much memory the kernels of a device need only while they run: for the plan, and for the stage that reserves it.
//
// The kernels check at each launch that what they need was reserved, so these formulas are bounds that a test plays through.

import { bytesOf } from "../base/dtype.ts";
import { type LayerRange, layersIn } from "../base/layers.ts";
import { multipliesInFp8, type WeightFormat } from "../base/precision.ts";
import { alignUp, maxOf, sum } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import {
  expertProducts,
  type Group,
  type groupShape,
  groupShapes,
  groupsOfModel,
  linearsOfModel,
} from "../families/linears.ts";
import { type LowKey, MOST_RANK } from "../methods/layout.ts";
import { FACTORS } from "../methods/registry.ts";
import { TABLE_KINDS, TABLE_TENSORS } from "../methods/tables.ts";
import type { Device } from "./device.ts";
import { fewExpertsScratch, fewRowsScratch, MOST_ROWS, readingOf } from "./fewrows.ts";
import { groupSize } from "./packed.ts";

export type ScratchNeed = {
  readonly spec: ModelSpec;
  readonly layers: LayerRange;
  readonly rows: number; // of the largest micro-batch
  readonly slots: number; // of adapters
  /** Elements of s of the largest micro-batch, of each group that adapters target; of the head those of a chunk. */
  readonly low: Readonly<Partial<Record<LowKey, number>>>;
  /** Rows of a chunk of logits. */
  readonly chunk: number;
  /** How the base's linear weights are held. */
  readonly format: WeightFormat;
  readonly expertFormat: WeightFormat;
  /** Whether sequences are extended by products over few rows (fewrows.ts). */
  readonly generates: boolean;
};

/** Rows of a tile, and tiles whose gradients one program sums (kernels/triton/lora.py, CHUNK). */
const [ROW_TILE, UP_CHUNK, DOWN_CHUNK] = [128, 8, 4];
/** Columns of x that one program of lora_down sums, and of dy that one of lora_up_grad reads. */
const DOWN_PART = 1024;
/** Parts of a tensor that grad_norm sums apart. */
const NORM_SLICES = 32;
/** Columns of a weight that a thread of the cpu device takes apart at a time, at most (ffi/native/product.c). */
const WIDEST_PIECE = 288;
/** Rows, and terms of each, that a product in bf16 rounds at a time (ffi/native/gemm_bf16.c). */
const [ROUNDED_ROWS, ROUNDED_TERMS] = [480, 6912];
/** Rows after them that AMX may read (ffi/native/gemm_amx.c). */
const ROUNDED_MORE = 15;
/** Bytes that it takes for m rows, k deep. */
export const roundedBytes = (m: number, k: number): number =>
  (Math.min(m, ROUNDED_ROWS) + ROUNDED_MORE) * Math.min(alignUp(k, 32), ROUNDED_TERMS) * 2;
/** Rows of an expert that are multiplied at once on a CPU (ops/experts/low-rank.ts). */
const BLOCK_ROWS = 480;
const UP_COLUMNS = { f32: 64, bf16: 128 };

/** Heads of q and k, heads of v, and the sizes of both. */
export type DeltaSizes = NonNullable<ModelSpec["delta"]>["heads"];
/** Tokens between states that the backward pass of a recurrence keeps (ffi/native/deltanet.c, statespace.c). */
const DELTA_CHUNK = 64;

/** Floats that a thread of the cpu device needs for a head of a sequence of this length; 0: without a backward pass. */
export function deltaRoom({ keyDim, valueDim }: DeltaSizes, tokens: number): number {
  const vectors = 2 * keyDim + valueDim;
  if (tokens === 0) return keyDim * valueDim + vectors;
  return (DELTA_CHUNK + 2 + Math.ceil(tokens / DELTA_CHUNK)) * keyDim * valueDim + DELTA_CHUNK * valueDim + vectors;
}

/** Heads of Mamba 2, the groups that share B and C, and the sizes of both. */
export type MambaSizes = NonNullable<ModelSpec["mamba"]>["heads"];

/** Floats that a thread of the cpu device needs for a head of a sequence of this length; 0: without a backward pass. */
export function stateSpaceRoom({ headDim, stateDim }: MambaSizes, tokens: number): number {
  const states = tokens === 0 ? 1 : DELTA_CHUNK + 2 + Math.ceil(tokens / DELTA_CHUNK);
  return states * headDim * stateDim;
}

/**
 * Parts of a group whose heads are computed apart in the backward pass, so that models with few groups keep more threads busy:
 * a number of the model alone, as sums of the parts go by it.
 */
export const headParts = ({ heads, groups }: MambaSizes): number =>
  Math.max(1, Math.min(heads / groups, Math.floor(8 / groups)));

/** Floats that the parts after the first leave of their gradients of B and C in a pass of M rows. */
export const partsRoom = (sizes: MambaSizes, M: number): number =>
  (headParts(sizes) - 1) * M * 2 * sizes.groups * sizes.stateDim;

/** Where parts of these bytes begin, one after the other, and all. */
function placedParts<K extends string>(sizes: Readonly<Record<K, number>>) {
  let end = 0;
  const begin = (bytes: number): number => {
    const at = end;
    end += alignUp(bytes, 256);
    return at;
  };
  const parts = Object.entries<number>(sizes).map(([part, bytes]) => [part, begin(bytes)] as const);
  return { parts: Object.fromEntries(parts) as Readonly<Record<K, number>>, bytes: end };
}

/** Heads that share B and C whose gradients one program of a GPU sums (kernels/triton/statespace_backward.py, HEADS). */
const PART_HEADS = 8;

/** Parts of the heads of a group whose gradients of B and C a GPU sums apart: a number of the model alone. */
export const spaceParts = ({ heads, groups }: MambaSizes): number => Math.ceil(heads / groups / PART_HEADS);

/** What a GPU's kernels leave each other in a pass of M rows (kernels/triton/statespace.py). */
export function spaceScratch(compute: "f32" | "bf16", of: MambaSizes, M: number) {
  const { heads: N, headDim: P, groups: G, stateDim: S } = of;
  const states = Math.ceil(M / DELTA_CHUNK) * N * P * S * bytesOf(compute);
  const shared = { vectors: 2 * M * N * 4, scores: M * G * DELTA_CHUNK * 4, before: states };
  return placedParts({ ...shared, after: states, sums: spaceParts(of) * M * 2 * G * S * 4 });
}

/** What a GPU's kernels leave each other in a pass of M rows (kernels/triton/deltanet.py). */
export function deltaScratch(compute: "f32" | "bf16", { valueHeads: N, keyDim: K, valueDim: V }: DeltaSizes, M: number) {
  const [c, states] = [bytesOf(compute), Math.ceil(M / DELTA_CHUNK) * N * K * V];
  return placedParts({
    ...{ vectors: 12 * M * N * 4, t: M * N * DELTA_CHUNK * c, p: M * N * DELTA_CHUNK * c, n: M * N * V * c },
    ...{ before: states * c, after: states * c, dqk: 2 * M * N * K * c },
  });
}

/** Bytes of scratch for any launch of a stage; launches follow each other, so the largest decides. */
export function scratchBytes(device: Pick<Device, "kind" | "compute" | "threads">, need: ScratchNeed): number {
  const { kind, compute } = device;
  const { spec, rows } = need;
  if (kind === "cpu") {
    const widths = groupsOfModel(spec).flatMap((group) => groupShapes(spec, group).map((shape) => shape.in));
    const dropped = rows * maxOf(widths) * 4; // x under its mask
    const delta = spec.delta ? device.threads * deltaRoom(spec.delta.heads, rows) * 4 : 0;
    const heads = spec.mamba?.heads;
    const space = heads ? 4 * (device.threads * stateSpaceRoom(heads, rows) + partsRoom(heads, rows)) : 0;
    const pieces = pieceScratch(device.threads, need);
    return Math.max(dropped, delta, space, pieces, expertScratch(device.threads, need));
  }
  const linears = Object.entries(need.low).flatMap(([group, elements]) =>
    expertProducts(spec).some((product) => product.group === group)
      ? expertGradientScratch(compute, group as Group, elements, need)
      : linearScratch(compute, group as LowKey, elements, need),
  );
  const norms = mostTensors(need) * NORM_SLICES * 4;
  const delta = spec.delta ? deltaScratch(compute, spec.delta.heads, rows).bytes : 0;
  const space = spec.mamba ? spaceScratch(compute, spec.mamba.heads, rows).bytes : 0;
  const frozen = Math.max(frozenScratch(compute, need), frozenExpertScratch(compute, need));
  const extended = need.generates ? extendingScratch(compute, need) : 0;
  return alignUp(Math.max(norms, delta, space, frozen, routeScratch(need), attentionScratch(need), extended, ...linears), 256);
}

/** Of products over rows that are sequences, the head's a chunk at a time. */
function extendingScratch(compute: "f32" | "bf16", { spec, format, rows: M, chunk, low }: ScratchNeed): number {
  const { hidden, layers, experts, perLayer } = spec;
  const groups = groupsOfModel(spec).flatMap((group) =>
    groupShapes(spec, group).map(({ in: K, firstColumn }) => {
      const [N, W] = [firstColumn.at(-1)!, (firstColumn.length - 1) * MOST_RANK];
      const readings = [readingOf(compute, format, K), "dense"] as const; // some groups of a packed base may be dense
      return Math.max(...readings.map((reading) => fewRowsScratch({ M, K, N, W, reading, compute }).bytes));
    }),
  );
  const ofExperts = expertProducts(spec).map(({ in: K, out }) => {
    const pairs = Math.min(M, MOST_ROWS) * experts!.perToken;
    return fewExpertsScratch({ pairs, K, N: sum(out), W: out.length * MOST_RANK }).bytes;
  });
  const dense = (M: number, N: number, W = 0) => fewRowsScratch({ M, K: hidden, N, W, reading: "dense", compute }).bytes;
  const own = Math.max(dense(M, experts?.count ?? 0), dense(M, perLayer ? layers * perLayer.size : 0));
  return Math.max(dense(Math.min(M, chunk), tableRows(spec), (low.head ?? 0) / chunk), own, ...groups, ...ofExperts);
}

/** Where the rows of each tile begin in each expert (ops/route.ts). */
const routeScratch = ({ spec, rows }: ScratchNeed): number => (rows / ROW_TILE + 1) * (spec.experts?.count ?? 0) * 4;

/** Of packed experts as many as a GPU takes apart at once. */
function frozenExpertScratch(compute: "f32" | "bf16", { spec, expertFormat: format }: ScratchNeed): number {
  if (format === "dense") return 0;
  const bytes = expertProducts(spec).map(({ in: width, out }) => width * sum(out) * bytesOf(compute));
  return maxOf(bytes.map((of) => groupSize(spec.experts!.count, of) * of));
}

/** `elements` of s of experts: s times routing weights, and what the product of a factor needs that all experts share. */
function expertGradientScratch(compute: "f32" | "bf16", group: Group, elements: number, { spec }: ScratchNeed): number[] {
  const shared = groupShapes(spec, group).flatMap((shape) => productScratch(compute, shape, elements));
  return [elements * spec.experts!.perToken * bytesOf(compute), ...shared];
}

/** The smallest heads whose keys' gradients may be summed in shares. */
const DIVIDED = 256;

/**
 * Equal shares of the query heads of a key head that programs sum apart, two heads at least: where a model has few key heads,
 * programs of all their query heads would be few and long.
 */
export const keyShares = (heads: number, kvHeads: number): number =>
  [4, 3, 2].find((shares) => (heads / kvHeads) % shares === 0 && heads / kvHeads > shares) ?? 1;

/** Bytes of the gradients of keys and values, share by share. */
export const keyShareBytes = (rows: number, kvHeads: number, headDim: number, shares: number): number =>
  shares * rows * 2 * kvHeads * headDim * 4;

/** Bounds that of any GPU: not each divides them. */
function attentionScratch({ spec, rows }: ScratchNeed): number {
  const { heads, fullHeads } = spec;
  const bytes = [spec, ...(fullHeads ? [fullHeads] : [])].map(({ kvHeads, headDim }) => {
    const shares = keyShares(heads, kvHeads);
    const isDivided = headDim > DIVIDED || (headDim === DIVIDED && shares > 1); // wider heads always, in a share at least
    return isDivided ? keyShareBytes(rows, kvHeads, headDim, shares) : 0;
  });
  return maxOf(bytes);
}

/** Of a product over the base's weights on a CPU. */
function pieceScratch(threads: number, { spec, format, rows, chunk }: ScratchNeed): number {
  if (format === "dense") return 0;
  if (format !== "bf16-products") return threads * WIDEST_PIECE * longest(spec) * 4;
  const products = [roundedBytes(rows, longest(spec)), roundedBytes(chunk, Math.max(spec.hidden, tableRows(spec)))];
  return Math.max(...products, WIDEST_PIECE * longest(spec) * 4); // the last: rows as f32, for DoRA's norms
}

/** Rows of one expert, gathered, next to what is taken apart of its weight, or to as many rows of s. */
function expertScratch(threads: number, { spec, expertFormat: format }: ScratchNeed): number {
  const products = expertProducts(spec);
  const wide = maxOf(products.flatMap(({ in: width, out }) => [width, sum(out)]));
  const beside = BLOCK_ROWS * MOST_RANK;
  return products.length === 0
    ? 0
    : 4 * (BLOCK_ROWS * wide + Math.max(beside, format === "dense" ? 0 : threads * WIDEST_PIECE * wide));
}

/**
 * Of a product over the base's weights: what is packed is taken apart, a group at a time. fp8 rounds its other factor, row by
 * row, and is taken apart for DoRA's norms alone; nf4-fp8 does both.
 */
function frozenScratch(compute: "f32" | "bf16", { spec, format, rows }: ScratchNeed): number {
  if (format === "dense") return 0;
  const sizes = groupsOfModel(spec).flatMap((group) =>
    groupShapes(spec, group).map(({ in: width, firstColumn }) => width * firstColumn.at(-1)!),
  );
  const apart = format === "nf4-fp8" ? alignUp(maxOf(sizes), 256) : 0;
  const rounded = multipliesInFp8(format) ? apart + alignUp(rows * longest(spec), 256) + rows * 4 : 0;
  return Math.max(rounded, maxOf(sizes) * bytesOf(compute));
}

/** The longest row that a group of linears reads or makes. */
const longest = (spec: ModelSpec): number =>
  maxOf(
    groupsOfModel(spec).flatMap((group) =>
      groupShapes(spec, group).flatMap(({ in: width, firstColumn }) => [width, firstColumn.at(-1)!]),
    ),
  );

function linearScratch(compute: "f32" | "bf16", group: LowKey, elements: number, { spec, chunk }: ScratchNeed): number[] {
  const { hidden } = spec;
  if (group === "embedding") return productScratch(compute, { in: hidden, firstColumn: [0, hidden] }, elements);
  if (group !== "head") return groupShapes(spec, group).flatMap((shape) => productScratch(compute, shape, elements));
  // Gradients are of a tile at a time (engine/adapted/adapted-tables.ts).
  const ofTile = productScratch(compute, { in: hidden, firstColumn: [0, tableRows(spec)] }, (elements / chunk) * ROW_TILE);
  return [Math.ceil(hidden / DOWN_PART) * elements * 4, ...ofTile];
}

/** `elements` of s; sums of later chunks of an adapter's rows are kept by columns of s and of x or y. */
function productScratch(
  compute: "f32" | "bf16",
  { in: width, firstColumn }: ReturnType<typeof groupShape>,
  elements: number,
): number[] {
  const columns = maxOf(firstColumn.slice(1).map((last, g) => last - firstColumn[g]!));
  const chunked = (length: number, chunk: number) => Math.ceil(elements / (ROW_TILE * chunk)) * length;
  return [
    Math.ceil(width / DOWN_PART) * elements * 4,
    (Math.ceil(columns / UP_COLUMNS[compute]) * elements + chunked(columns, UP_CHUNK)) * 4,
    chunked(width, DOWN_CHUNK) * 4,
  ];
}

/** Tensors that any adapter can have on a stage. */
const mostTensors = ({ spec, layers }: ScratchNeed): number =>
  layersIn(layers).length * linearsOfModel(spec).length * FACTORS.length + TABLE_KINDS.length * TABLE_TENSORS.length;
