// The keys and values that generation keeps of the tokens it has read, so that a generated token costs one row of a pass.

import type { DType } from "../base/dtype.ts";
import { sum } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import type { Program } from "./program.ts";

/** Sequences that are generated at once, and tokens that each may have. */
export type CacheSizes = { readonly sequences: number; readonly capacity: number };

/**
 * Of each layer of a stage: c[sequences * capacity, 2 C D], a row for each token that is kept; without columns where a layer
 * reads the keys and values of another.
 */
export type KvCache = readonly Tensor[];

/**
 * The rows of the cache that a pass writes, i32[M], and what its rows attend to: each other, or the cache
 * (their own keys included).
 */
export type Cached = { readonly cache: KvCache; readonly places: Tensor; readonly from: "pass" | "cache" };

export const takeCache = (
  take: (dtype: DType, ...shape: number[]) => Tensor,
  compute: DType,
  program: Program,
  { sequences, capacity }: CacheSizes,
): KvCache =>
  program.map(({ operations }) => {
    const isOwn = operations.every((of) => of.op !== "sharedKv");
    const widths = operations.map((of) => (isOwn && of.op === "attention" ? 2 * of.heads.kvHeads * of.heads.headDim : 0));
    return take(compute, sequences * capacity, sum(widths));
  });
