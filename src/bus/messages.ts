// What the coordinator and a stage say to each other. Plain data only: a message describes work, it never carries a closure.
// Each has its schema in schemas.ts, by which it is checked where it arrives.

import type { Linear } from "../base/spec.ts";
import type { MicroBatch } from "../schedule/pack.ts";

/** One adapter's AdamW step; `t` counts from 1. */
export type AdamStep = {
  readonly adapter: number;
  readonly t: number;
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** What gradients are multiplied by: 1, or less where their norm is clipped. */
  readonly coefficient: number;
};

/** A factor of an adapter: A is [rank, in], B is [out, rank]. */
export type FactorTensor = {
  readonly layer: number;
  readonly linear: Linear;
  readonly factor: "A" | "B";
  readonly values: Float32Array;
};

/** The device of a stage, as it announces itself: what the coordinator plans from. The same as the device's own report. */
export type StageReport = {
  readonly kind: "cpu" | "cuda";
  readonly name: string;
  readonly compute: "f32" | "bf16";
  readonly rowTile: number;
  readonly paddedRanks: readonly number[];
  readonly totalBytes: number;
  readonly freeBytes: number;
  /** Why it is not a GPU, where one might be expected; null when there is nothing to say. */
  readonly note: string | null;
};

export type StageRequest =
  | { readonly type: "forward"; readonly pass: number; readonly batch: MicroBatch }
  | { readonly type: "backward"; readonly pass: number }
  | { readonly type: "evaluate"; readonly batch: MicroBatch }
  | { readonly type: "squares" }
  | { readonly type: "step"; readonly steps: readonly AdamStep[] }
  | { readonly type: "read"; readonly adapter: number }
  | { readonly type: "write"; readonly adapter: number; readonly factors: readonly FactorTensor[] };

/** For each packed sequence of a micro-batch, in order: the sum of its targets' losses, and how many greedy decoding hits. */
export type SequenceLoss = { readonly loss: number; readonly hits: number };

export type StageReply = {
  readonly forward: null;
  /** On the last stage the losses, else null. */
  readonly backward: readonly SequenceLoss[] | null;
  readonly evaluate: readonly SequenceLoss[] | null;
  /** Of each adapter, the sums of its gradients' squares, tensor by tensor on this stage. */
  readonly squares: readonly Float32Array[];
  readonly step: null;
  readonly read: readonly FactorTensor[];
  readonly write: null;
};
