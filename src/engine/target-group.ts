// Where adapters meet the model: a group of linears in one layer, with the stacked tensors of all adapters there.

import type { Group } from "../base/spec.ts";
import type { Tensor } from "../device/device.ts";

/** What DoRA adds to a group of linears (dora.ts); stacked, an adapter behind the other. */
export type Magnitudes = {
  readonly m: Tensor; // f32[L, N], trained
  readonly dm: Tensor;
  readonly gain: Tensor; // f32[L, N] = m / norm; 1 where an adapter has no magnitudes
  readonly inverse: Tensor; // f32[L, N] = 1 / norm, or 0
  readonly decomposed: Tensor; // i32[L] = 1 for DoRA adapters with a target in the group
};

/** What VeRA adds to a group of linears (vera.ts): vectors that are trained, and what the projections are drawn by. */
export type Vectors = {
  readonly d: Tensor; // f32[L, G 256]
  readonly b: Tensor; // f32[L, N]
  readonly dd: Tensor;
  readonly db: Tensor;
  readonly projection: Tensor; // i32[L, 5] (kernels.ts, vera_expand)
};

/** One group of linears in one layer: the stacked tensors of all adapters there. */
export type TargetGroup = {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly da: Tensor;
  readonly db: Tensor;
  readonly ranks: Tensor;
  readonly scale: Tensor;
  readonly firstColumn: readonly number[];
  readonly linears: number;
  readonly rank: number;
  readonly group: Group;
  /** Names the group within the whole model, for dropout. */
  readonly module: number;
  /** Null in a run without DoRA adapters. */
  readonly magnitudes: Magnitudes | null;
  /** Null in a run without VeRA adapters. */
  readonly vectors: Vectors | null;
};
