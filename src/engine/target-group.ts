// Where adapters meet the model: a group of linears in one layer, with the tensors of all adapters there, one slot after
// the other.

import type { Tensor } from "../device/device.ts";
import type { Group } from "../families/linears.ts";
import type { PeftMethod } from "../methods/registry.ts";

/** What one method has in a target group next to A and B; each f32[L, columns]. */
export type MethodTensors = {
  /** The tensors that it stores, by name, and their gradients. */
  readonly values: Readonly<Record<string, Tensor>>;
  readonly grads: Readonly<Record<string, Tensor>>;
  /** What follows from them (engine/methods/computation.ts). */
  readonly derived: Readonly<Record<string, Tensor>>;
  /** i32[L, width], the same of all groups. */
  readonly table: Tensor | null;
  /** i32[L]: 1 for adapters of the method that target the group; of methods that compute rows themselves. */
  readonly present: Tensor | null;
};

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
  readonly layer: number;
  readonly group: Group;
  /** Names the group within the whole model, for dropout. */
  readonly module: number;
  /** Of methods that have memory in the group. */
  readonly methods: Readonly<Partial<Record<PeftMethod, MethodTensors>>>;
};
