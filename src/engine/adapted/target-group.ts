// Where adapters meet the model: a group of linears in one layer, with tables of the adapters there, a row for each slot.

import type { Tensor } from "../../device/device.ts";
import type { Group } from "../../families/linears.ts";
import type { PeftMethod } from "../../methods/registry.ts";

/** Tables as ops/linear/low-rank.ts says. */
export type TargetGroup = {
  /** i64[L, G, 4]: addresses of A, the transposed B and their gradients. */
  readonly factors: Tensor;
  /** i64[L, G, 4]: addresses of a method's own vectors. */
  readonly vectors: Tensor;
  /** i32[L, G] */
  readonly ranks: Tensor;
  /** f32[L, G] */
  readonly scale: Tensor;
  /** i32[L, G, 2]: of experts (ops/experts/low-rank.ts). */
  readonly strides: Tensor;
  /**
   * i32[L, G], of experts: the ranks of adapters of which all experts share the outer factor (methods/sharing.ts), and of those
   * of which each has its own; else 0.
   */
  readonly sharedRanks: Tensor;
  readonly ownRanks: Tensor;
  /** i32[L, 4], for experts: a pass's table of dropout that drops nothing. */
  readonly noDropout: Tensor;
  /** Input features, and where each linear begins in the output (families/linears.ts). */
  readonly width: number;
  readonly firstColumn: readonly number[];
  readonly layer: number;
  readonly group: Group;
  /** Names the group within the whole model, for dropout. */
  readonly module: number;
  /** i32[L]: 1 for adapters of the method that target the group; of methods that compute rows themselves. */
  readonly present: Readonly<Partial<Record<PeftMethod, Tensor>>>;
};

/** Where adapters meet a table: the tables of a group of one linear, as ops/tables.ts says. */
export type TableSite = Pick<TargetGroup, "factors" | "ranks" | "scale" | "firstColumn" | "module"> & {
  /** Of adapters with a product the same ranks, of the others 0. */
  readonly upRanks: Tensor;
  /** i64[L, 1, 4]: the address of the tokens whose rows of the head are trained, or 0. */
  readonly tokens: Tensor;
};

/** What a target group is known by within a stage. */
export const siteKey = ({ layer, group }: Pick<TargetGroup, "layer" | "group">): string => `${layer}.${group}`;
