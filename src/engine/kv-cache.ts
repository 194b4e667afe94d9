// The keys and values that generation keeps of the tokens it has read, or what linear attention and convolutions have after
// them, so that a generated token costs one row of a pass.

import type { DType } from "../base/dtype.ts";
import { alignUp, sum } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import type { Operation } from "../families/definition.ts";
import type { Program } from "./program.ts";

/** Sequences that are generated at once, and tokens that each may have. */
export type CacheSizes = { readonly sequences: number; readonly capacity: number };

/**
 * Rows of a pass that extends a number of sequences, a row each: few different numbers, as each has launches of its own
 * (row-pass.ts).
 */
export const rowsFor = (sequences: number): number =>
  sequences > 128 ? alignUp(sequences, 128) : Math.max(8, 2 ** Math.ceil(Math.log2(sequences)));

/** What layers keep of each sequence in place of its keys: the last rows of their convolution, and the states of attention. */
export type LinearCache = {
  readonly window: Tensor; // c[sequences, taps - 1, channels]
  readonly state: Tensor | null; // f32[sequences, N, K, V] or [sequences, N, P, S]; null where a convolution is all
};

export type LayerCache = {
  /**
   * c[sequences * capacity, 2 C D], a row for each token that is kept; without columns where a layer has no keys of its own.
   */
  readonly kv: Tensor;
  readonly linear: LinearCache | null;
};

/** Of each layer of a stage. */
export type KvCache = readonly LayerCache[];

/**
 * The rows of the cache that a pass writes, i32[M], `capacity` of them for each sequence, and what its rows attend to: each
 * other, or the cache (their own keys included).
 */
export type Cached = {
  readonly cache: KvCache;
  readonly places: Tensor;
  readonly capacity: number;
  readonly from: "pass" | "cache";
};

type Take = (dtype: DType, ...shape: number[]) => Tensor;

export const takeCache = (take: Take, compute: DType, program: Program, { sequences, capacity }: CacheSizes): KvCache =>
  program.map(({ operations }) => {
    const isOwn = operations.every((of) => of.op !== "sharedKv");
    const widths = operations.map((of) => (isOwn && of.op === "attention" ? 2 * of.heads.kvHeads * of.heads.headDim : 0));
    return { kv: take(compute, sequences * capacity, sum(widths)), linear: takeLinear(take, compute, operations, sequences) };
  });

function takeLinear(take: Take, compute: DType, operations: Program[0]["operations"], sequences: number): LinearCache | null {
  const convolution = operations.find((of) => of.op === "convolution" || of.op === "shortConvolution");
  if (!convolution) return null;
  const shape = operations.map(stateShape).find((sizes) => sizes !== null);
  return {
    window: take(compute, sequences, convolution.taps - 1, convolution.channels),
    state: shape ? take("f32", sequences, ...shape) : null,
  };
}

/** Of the states of a sequence, by heads; null for an operation without them. */
function stateShape(of: Operation): readonly number[] | null {
  if (of.op === "deltaRule") return [of.heads.valueHeads, of.heads.keyDim, of.heads.valueDim];
  return of.op === "stateSpace" ? [of.heads.heads, of.heads.headDim, of.heads.stateDim] : null;
}
