// How a PEFT method is computed. Every adapter passes through a linear as a LoRA of its A, B, ranks and scales; a method
// adds what it says here: memory in the pool, work before a pass and around a target group, and rows that it computes itself.

import type { ModelSpec } from "../../base/spec.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Weight } from "../../device/packed.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import type { PeftMethod } from "../../methods/registry.ts";
import type { LowRank } from "../../ops/linear.ts";
import type { TargetGroup } from "../adapted/target-group.ts";

export type Frozen = { readonly weight: Weight; readonly bias: Tensor | null };

/** A target group with its frozen linears, and the most rank that a refresh has to do with there. */
export type WeightedSite = { readonly site: TargetGroup; readonly weight: Weight; readonly most: number };

/** Whether the rows of a pass at a target group are of adapters of one method that target it. */
export type Extent = "none" | "some" | "all";
/** Of methods that compute rows themselves, by layer and group; left out where there are none. */
export type Presence = ReadonlyMap<PeftMethod, ReadonlyMap<string, Extent>>;

type OfRows = {
  readonly site: TargetGroup;
  /** i32[slots]: 1 for adapters of the method that target the group. */
  readonly present: Tensor;
  readonly tileAdapter: Tensor;
  readonly lora: LowRank;
};
/** Adapters of a method: `which` i32[slots], 1 for those in the pass, and the method's own table. */
export type Expanding = { readonly which: Tensor; readonly table: Tensor | null };

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
  /**
   * Whether a row is a LoRA's product times the derived vector `gain`, before bias and residual: rows that find their own
   * adapters (ops/fewrows.ts) need nothing else.
   */
  readonly areGains: boolean;
  readonly backward: (
    device: Device,
    of: OfRows & { readonly weight: Weight; readonly x: Tensor; readonly dy: Tensor },
    product: { readonly memory: Tensor; readonly isKept: boolean },
  ) => Tensor;
};

export type Computation = {
  /**
   * What follows from an adapter's tensors and the weight, f32[out] of each target group, with its values before the first
   * refresh. Addresses of a linear's part follow those of the stored vectors in the target group's `vectors`.
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
  readonly refresh?: (device: Device, sites: readonly WeightedSite[], stale: Tensor) => void;
  /** Whether the values of a new adapter need a refresh, as they follow from the weight. */
  readonly beginsByRefresh?: true;
  readonly rows?: OwnRows;
  /** Of a method that stores neither A nor B. */
  readonly expansion?: {
    /** Makes A and B of its tensors, before each use of a target group. */
    readonly expand: (device: Device, site: TargetGroup, of: Expanding) => void;
    /** Adds to the gradients of its tensors what A and B have got, which become zero. */
    readonly reduce: (device: Device, site: TargetGroup, of: Expanding) => void;
  };
};
