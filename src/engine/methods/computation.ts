// How a PEFT method is computed. Every adapter passes through a linear as a LoRA of its A, B, ranks and scales; a method
// adds what it says here: memory in the pool, work before a pass and before a step, and rows that it computes itself.

import type { ModelSpec } from "../../base/spec.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Weight } from "../../device/packed.ts";
import type { Group } from "../../families/linears.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import type { PeftMethod } from "../../methods/registry.ts";
import type { LowRank } from "../../ops/linear.ts";
import type { MethodTensors, TargetGroup } from "../target-group.ts";

export type Frozen = { readonly weight: Weight; readonly bias: Tensor | null };

/** A group where a method has memory, with that memory, its frozen linears among it. */
export type MethodSite = { readonly site: TargetGroup; readonly own: MethodTensors; readonly weight: Weight };

/** Whether the rows of a pass in a group are of adapters of one method that target it. */
export type Extent = "none" | "some" | "all";
/** Of methods that compute rows themselves. */
export type Presence = Readonly<Partial<Record<PeftMethod, Readonly<Record<Group, Extent>>>>>;

type OfRows = { readonly site: TargetGroup; readonly own: MethodTensors; readonly tileAdapter: Tensor; readonly lora: LowRank };

/**
 * Rows that a method computes itself, of adapters that target the group; it leaves those of others as they are. `product`:
 * memory of y's size.
 */
export type OwnRows = {
  /** Writes its rows of y. */
  readonly forward: (
    device: Device,
    of: OfRows & Frozen & { readonly x: Tensor; readonly y: Tensor; readonly residual: Tensor | null },
    product: Tensor,
  ) => void;
  /**
   * Adds to the gradients of its tensors, and returns that of the low-rank product's output; other rows are dy's. `isKept`:
   * `product` is as forward left it.
   */
  readonly backward: (
    device: Device,
    of: OfRows & { readonly weight: Weight; readonly x: Tensor; readonly dy: Tensor },
    product: { readonly memory: Tensor; readonly isKept: boolean },
  ) => Tensor;
};

export type Computation = {
  /**
   * What follows from an adapter's tensors and the weight, f32[slots, out] of each target group, with the value in a slot
   * before the first refresh.
   */
  readonly derived?: Readonly<Record<string, number>>;
  /** What its kernels read of each adapter: i32[slots, width]. A slot of another method has zeros. */
  readonly table?: {
    readonly width: number;
    readonly row: (spec: ModelSpec, adapter: PoolAdapter) => readonly number[];
  };
  /**
   * Before the first pass after a step or a write. `stale` i32[slots]: 1 for adapters that have changed, 2 for such as
   * begin with it (`beginsByRefresh`), else 0.
   */
  readonly refresh?: (device: Device, sites: readonly MethodSite[], stale: Tensor) => void;
  /** Whether the values of a new adapter need a refresh, as they follow from the weight. */
  readonly beginsByRefresh?: true;
  readonly rows?: OwnRows;
  /**
   * Before gradients are read or stepped by: makes those of its tensors of what has been added up for A and B. `which`
   * i32[slots]: 1 for its adapters.
   */
  readonly settle?: (device: Device, sites: readonly Omit<MethodSite, "weight">[], which: Tensor) => void;
};
