// What the coordinator and a stage say to each other. Plain data only: a message describes work, it never carries a closure.
// Each has its schema in schemas.ts, by which it is checked where it arrives.

import type { WeightFormat } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Group, Linear } from "../families/linears.ts";
import type { Init } from "../methods/init.ts";
import type { Placement } from "../methods/placement.ts";
import type { PeftMethod } from "../methods/registry.ts";
import type { GenerationBatch } from "../schedule/decode.ts";
import type { MicroBatch } from "../schedule/pack.ts";

/** One adapter's AdamW step; `t` counts from 1. */
export type AdamStep = {
  readonly adapter: number;
  readonly t: number;
  readonly learningRate: number;
  /** The rate of B as a multiple of that of A (LoRA+); 1 for one rate. */
  readonly ratio: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** What gradients are multiplied by: 1, or less where their norm is clipped. */
  readonly coefficient: number;
};

/** One adapter's step of stochastic gradient descent with momentum. */
export type SgdStep = Pick<AdamStep, "adapter" | "t" | "learningRate" | "ratio" | "weightDecay" | "coefficient"> & {
  readonly momentum: number;
  readonly nesterov: boolean;
};

export type OptimizerStep = AdamStep | SgdStep;

/**
 * What a stage keeps of an adapter: its part of the parameters and of the two moments (of SGD, m is the momentum's buffer and v is zero),
 * each a block as methods/layout.ts lays it out.
 */
export type BlockName = "params" | "m" | "v";

/** The device of a stage, as it announces itself: what the coordinator plans from. The same as the device's own report. */
export type StageReport = {
  readonly kind: "cpu" | "cuda";
  readonly name: string;
  readonly compute: "f32" | "bf16";
  readonly rowTile: number;
  readonly paddedRanks: readonly number[];
  /** Threads of a CPU that share the work; 0 of a GPU. */
  readonly threads: number;
  readonly totalBytes: number;
  readonly freeBytes: number;
  /** Which of them it is, and how many such devices its machine has. */
  readonly ordinal: number;
  readonly count: number;
  /** Why it is not a GPU, where one might be expected; null when there is nothing to say. */
  readonly note: string | null;
};

/** A device to open; `sharers` are the stages of the run on that machine, which has its cores for all of them. */
export type DeviceChoice = Pick<StageReport, "kind" | "compute" | "ordinal"> & { readonly stagesOnHost: number };

/** Where a stage's frozen weights come from: a Hugging Face folder, or nowhere, in benchmarks. */
export type BaseModel = { readonly folder: string } | { readonly randomSeed: number };

export type AdmittedAdapter = {
  readonly rank: number;
  readonly scale: number;
  readonly targets: readonly Linear[];
  readonly places?: Placement;
  readonly seed: number;
  readonly method?: PeftMethod;
  /** VeRA: the seed of its projections, and what its lambda_d begins as. */
  readonly projectionSeed?: number;
  readonly dInitial?: number;
  /** Null: all is zero, until it is written. */
  readonly init: Init | null;
  /** Ranks from here on are frozen; left out, none is. */
  readonly trainedRank?: number;
};

/** All that a stage must know before its first micro-batch: its share of the model, and the memory that it takes. */
export type StageSetup = {
  readonly model: BaseModel;
  readonly spec: ModelSpec;
  /** Layers from `from` on and below `to`. */
  readonly layerRange: { readonly from: number; readonly to: number; readonly first: boolean; readonly last: boolean };
  readonly sizes: {
    readonly slots: number;
    readonly rows: number;
    readonly targets: number;
    readonly chunk: number;
    readonly layers: number;
    readonly rank: number;
    readonly recomputation: "none" | "selective" | "full";
    readonly groups: readonly Group[];
    readonly methods: Readonly<Partial<Record<PeftMethod, readonly Group[]>>>;
    /** 0 of a stage that only evaluates and generates. */
    readonly inFlight: number;
    readonly positions: number;
    readonly format: WeightFormat;
    /** Left out of a stage that does not generate. */
    readonly cache?: { readonly sequences: number; readonly capacity: number };
  };
  readonly device: DeviceChoice;
  readonly link: "auto" | "ipc" | "nccl" | "shm" | "nats";
  /** For what each neighbour sends. */
  readonly capacity: { readonly slots: number; readonly slotBytes: number };
};

export type StageRequest =
  /** The first, and once: takes all memory, opens the links to both neighbours, loads the weights. */
  | { readonly type: "open"; readonly setup: StageSetup }
  | { readonly type: "forward"; readonly pass: number; readonly batch: MicroBatch }
  /** With `logProbs` the losses come with the log-probability of each target. */
  | { readonly type: "backward"; readonly pass: number; readonly logProbs?: boolean }
  | { readonly type: "evaluate"; readonly batch: MicroBatch; readonly logProbs?: boolean }
  /** A pass of generation, which keeps keys and values in the stage's cache. */
  | { readonly type: "decode"; readonly batch: GenerationBatch }
  | { readonly type: "squares"; readonly adapters: readonly number[] }
  | { readonly type: "step"; readonly steps: readonly OptimizerStep[] }
  /** From now on the slot, and so its number in micro-batches and steps, is this adapter's, as it is before its first step. With
   * `layer` it is so when all of a stage's layers have come, in their order: for what takes long to begin. */
  | { readonly type: "admit"; readonly slot: number; readonly adapter: AdmittedAdapter; readonly layer?: number }
  | { readonly type: "read"; readonly slot: number; readonly what: readonly BlockName[] }
  | { readonly type: "write"; readonly slot: number; readonly blocks: Readonly<Partial<Record<BlockName, Float32Array>>> }
  | { readonly type: "clock" }
  | { readonly type: "peak" }
  /** From now on what passes do is timed, or kernels are, or not; the reply has what was timed before. */
  | { readonly type: "trace"; readonly passes: boolean; readonly kernels: boolean };

/** Something that a stage did, by its own clock in milliseconds; `pass` is null for steps and evaluations. */
export type StageSpan = {
  readonly kind: "receive" | "forward" | "backward" | "send" | "step" | "evaluate" | "decode";
  readonly pass: number | null;
  readonly adapters: readonly number[];
  readonly start: number;
  readonly end: number;
};

export type KernelSpan = { readonly kernel: string; readonly start: number; readonly end: number };

/**
 * For each packed sequence of a micro-batch, in order: the sum of its targets' losses, and how many greedy decoding hits. For the first of a
 * row of CIT also the cosines of its pooled state with the paraphrase's of each row of its share.
 */
export type SequenceLoss = {
  readonly loss: number;
  readonly correct: number;
  readonly similar?: readonly number[];
  /** f32[targets], where they are asked for. */
  readonly logProbs?: Float32Array;
};

export type StageReply = {
  /** Of each neighbour, the one before first: the link to it and why it is that one. */
  readonly open: readonly string[];
  readonly forward: null;
  /** On the last stage the losses, else null. */
  readonly backward: readonly SequenceLoss[] | null;
  readonly evaluate: readonly SequenceLoss[] | null;
  /** On the last stage the logits f32[vocab] of each sequence's next token, in their order, else null. */
  readonly decode: readonly Float32Array[] | null;
  /** Of each adapter asked for, the sums of its gradients' squares, tensor by tensor on this stage. */
  readonly squares: readonly Float32Array[];
  readonly step: null;
  readonly admit: null;
  readonly read: readonly Float32Array[];
  readonly write: null;
  /** What its clock says, in milliseconds, and how much less memory its device has free than before the stage was opened. */
  readonly clock: { readonly now: number; readonly takenBytes: number };
  /** FLOP/s of a large product. */
  readonly peak: number;
  readonly trace: { readonly spans: readonly StageSpan[]; readonly kernels: readonly KernelSpan[] };
};
