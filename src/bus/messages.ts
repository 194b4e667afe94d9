// Messages between the coordinator and a stage. The schema of each checks it where it arrives, and gives its type. Plain data
// only: a message describes work, it never carries a closure.

import * as v from "valibot";
import { deviceChoice } from "../base/device-report.ts";
import { layerRange } from "../base/layers.ts";
import { WEIGHT_FORMATS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import { bytes, count, floats, ints, natural, type Output, real, realOrNaN, type SchemaOf } from "../base/schema.ts";
import { modelSpec } from "../base/spec.ts";
import { stageAdapter } from "../methods/adapter.ts";
import { adapterSizes } from "../methods/layout.ts";
import { BLOCKS } from "../methods/optimizers.ts";
import { generationBatch, microBatch, nextTokens } from "../schedule/micro-batch.ts";

const anyStep = {
  adapter: count,
  /** Counts from 1. */
  t: natural,
  learningRate: real,
  /** The rate of B as a multiple of that of A (LoRA+); 1 for one rate. */
  ratio: real,
  weightDecay: real,
  /** Gradients are multiplied by it: 1, or less where their norm is clipped. */
  coefficient: real,
};
/**
 * One adapter's step, of AdamW or of stochastic gradient descent with momentum; or, of one that makes none, that its gradients
 * are dropped.
 */
const optimizerStep = v.union([
  v.strictObject({ adapter: count, dropped: v.literal(true) }),
  v.strictObject({ ...anyStep, beta1: real, beta2: real, eps: real }),
  v.strictObject({ ...anyStep, momentum: real, nesterov: v.boolean() }),
]);
export type OptimizerStep = Output<typeof optimizerStep>;
export type MadeOptimizerStep = Exclude<OptimizerStep, { readonly dropped: true }>;

/** Where a stage's frozen weights come from: a Hugging Face folder, or nowhere, in benchmarks. */
const baseModel = v.union([v.strictObject({ folder: v.string() }), v.strictObject({ randomSeed: count })]);
export type BaseModel = Output<typeof baseModel>;

/** All that a stage must know before its first micro-batch: its share of the model, and the memory that it takes. */
const stageSetup = v.strictObject({
  model: baseModel,
  spec: modelSpec,
  layerRange: v.strictObject({ ...layerRange.entries, first: v.boolean(), last: v.boolean() }),
  /** All that decides how much memory a stage takes, next to the model and its layers. */
  sizes: v.strictObject({
    ...adapterSizes.entries,
    /** Bytes of the adapters that are on the stage at once; each takes its own when it joins. */
    blockBytes: count,
    /** Bytes of host memory for adapters that wait for their turn on the device; 0 where none does. */
    hostBytes: count,
    /** Elements of each buffer for the gradients of an adapter: as many as adapters may be in a step at once. */
    gradients: v.array(count),
    /** Adapters that train at once, at most. */
    slots: natural,
    /** Rows of the largest micro-batch, and its target rows: multiples of the row tile. */
    rows: natural,
    targets: natural,
    /** Rows of a chunk of logits. */
    chunk: natural,
    /** Of this stage. */
    layers: natural,
    recomputation: v.picklist(RECOMPUTATIONS),
    /** Layers whose attention's input waits in host memory; left out: none. */
    hostInputs: v.exactOptional(count),
    /** Packed batches between forward and backward at one time; 0 of a stage that only evaluates and generates. */
    inFlight: count,
    /** Longest sequence. */
    positions: natural,
    /** How the base's linear weights are held. */
    format: v.picklist(WEIGHT_FORMATS),
    /** Groups of linears that are dense nevertheless, as "layer.group". */
    denseGroups: v.exactOptional(v.array(v.string())),
    expertFormat: v.exactOptional(v.picklist(WEIGHT_FORMATS)),
    tableFormat: v.exactOptional(v.literal("bf16")),
    /** Of a stage that generates: sequences at once, tokens that each may have, and pages for all. */
    cache: v.exactOptional(v.strictObject({ sequences: natural, capacity: natural, pages: v.exactOptional(natural) })),
  }),
  device: deviceChoice,
  link: v.picklist(["auto", "ipc", "nccl", "shm", "nats"]),
  /** For what each neighbour sends. */
  capacity: v.strictObject({ slots: natural, slotBytes: natural }),
});
export type StageSetup = Output<typeof stageSetup>;

/** Something that a stage did, by its own clock in milliseconds; `pass` is null for steps and evaluations. */
const stageSpan = v.strictObject({
  kind: v.picklist(["receive", "forward", "backward", "send", "step", "evaluate", "decode"]),
  pass: v.nullable(count),
  adapters: v.array(count),
  start: real,
  end: real,
});
export type StageSpan = Output<typeof stageSpan>;
const kernelSpan = v.strictObject({ kernel: v.string(), start: real, end: real });
export type KernelSpan = Output<typeof kernelSpan>;

/**
 * For each packed sequence of a micro-batch, in order: the sum of its targets' losses, and the number of targets that greedy
 * decoding gets right. For the first of a row of CIT also the cosines of its pooled state with the paraphrase's of each row of
 * its segment.
 */
const sequenceLoss = v.strictObject({
  loss: realOrNaN,
  correct: count,
  similar: v.exactOptional(v.array(realOrNaN)),
  /** f32[targets], where the request asks for them. */
  logProbs: v.exactOptional(floats),
  /** The `width` likeliest tokens at each target, in falling order, and their log-probabilities. */
  top: v.exactOptional(v.strictObject({ width: natural, ids: ints, logProbs: floats })),
});
export type SequenceLoss = Output<typeof sequenceLoss>;
/** From the last stage; null from the others. */
const losses = v.nullable(v.array(sequenceLoss));

const nothing = v.strictObject({});
/** An array of an adapter's state (methods/optimizers.ts). */
const values = v.union([floats, bytes]);

/** A request without its type, and the reply to it. */
const MESSAGES = {
  /**
   * The first, and once: takes all memory, opens the links to both neighbours, loads the weights. The reply says of each
   * neighbour, the previous stage first, which link leads to it and why.
   */
  open: { request: v.strictObject({ setup: stageSetup }), reply: v.array(v.string()) },
  forward: { request: v.strictObject({ pass: count, batch: microBatch }), reply: v.null() },
  backward: { request: v.strictObject({ pass: count, logProbs: v.exactOptional(v.boolean()) }), reply: losses },
  /** `top`: the number of likeliest tokens to find at each target. */
  evaluate: {
    request: v.strictObject({ batch: microBatch, logProbs: v.exactOptional(v.boolean()), top: v.exactOptional(natural) }),
    reply: losses,
  },
  /**
   * A pass of generation, which keeps keys and values in the stage's cache. The last stage replies with each sequence's next
   * token, in their order; the others with null.
   */
  decode: { request: v.strictObject({ batch: generationBatch }), reply: v.nullable(nextTokens) },
  /** Of each adapter asked for, the sums of its gradients' squares, tensor by tensor on this stage. */
  squares: { request: v.strictObject({ adapters: v.array(count) }), reply: v.array(floats) },
  /**
   * Of each adapter asked for, since it was last asked for: the rows that the busiest experts of this stage's layers got in
   * training, and all experts.
   */
  loads: {
    request: v.strictObject({ adapters: v.array(count) }),
    reply: v.array(v.strictObject({ busiest: count, all: count })),
  },
  /**
   * The gradient of rows that serve both tables of a tied model (session/training/shared-rows.ts): the first stage's is taken,
   * or put in its place; the last stage adds to its own and replies with the sum.
   */
  share: {
    request: v.strictObject({ slot: count, what: v.picklist(["take", "add", "put"]), values: v.exactOptional(floats) }),
    reply: floats,
  },
  step: { request: v.strictObject({ steps: v.array(optimizerStep) }), reply: v.null() },
  /**
   * From now on the slot, and so its number in micro-batches and steps, is this adapter's, as it is before its first step. With
   * `layer` that holds once all layers of the stage have been sent, in order: for what takes long to initialise.
   */
  admit: { request: v.strictObject({ slot: count, adapter: stageAdapter, layer: v.exactOptional(count) }), reply: v.null() },
  /** Frees a slot: the memory of the adapter that was there is released. */
  release: { request: v.strictObject({ slot: count }), reply: v.null() },
  /**
   * Moves all that an adapter has to host memory, while later requests are handled. It must be in no step; until it is fetched
   * it may be read and released, and nothing else. The reply says how long the copy took.
   */
  offload: { request: v.strictObject({ slot: count }), reply: v.strictObject({ ms: real }) },
  /** The way back: from the reply on the adapter may be trained. */
  fetch: { request: v.strictObject({ slot: count }), reply: v.strictObject({ ms: real }) },
  read: { request: v.strictObject({ slot: count, what: v.array(v.picklist([...BLOCKS, "grads"])) }), reply: v.array(values) },
  write: {
    request: v.strictObject({
      slot: count,
      blocks: v.strictObject({
        params: v.exactOptional(floats),
        ...{ m: v.exactOptional(values), v: v.exactOptional(values) },
        ...{ mAbsmax: v.exactOptional(floats), vAbsmax: v.exactOptional(floats) },
        grads: v.exactOptional(floats),
      }),
    }),
    reply: v.null(),
  },
  /** Its clock, in milliseconds, and how much less memory its device has free than before the stage was opened. */
  clock: { request: nothing, reply: v.strictObject({ now: real, takenBytes: real }) },
  /** FLOP/s of a large product. */
  peak: { request: nothing, reply: real },
  /** From now on passes are timed, or kernels are, or not; the reply has what was timed before. */
  trace: {
    request: v.strictObject({ passes: v.boolean(), kernels: v.boolean() }),
    reply: v.strictObject({ spans: v.array(stageSpan), kernels: v.array(kernelSpan) }),
  },
};

type Messages = typeof MESSAGES;
export type RequestType = keyof Messages;
export type RequestOf<T extends RequestType> = { readonly type: T } & Output<Messages[T]["request"]>;
export type StageRequest = { [T in RequestType]: RequestOf<T> }[RequestType];
export type StageReply = { readonly [T in RequestType]: Output<Messages[T]["reply"]> };

/** The schema of a request; null where there is none of that type. */
export const requestSchema = (type: string): SchemaOf<StageRequest> | null =>
  Object.hasOwn(REQUESTS, type) ? REQUESTS[type as RequestType] : null;

const REQUESTS = Object.fromEntries(
  Object.entries(MESSAGES).map(([type, { request }]) => [type, v.strictObject({ type: v.literal(type), ...request.entries })]),
) as unknown as Readonly<Record<RequestType, SchemaOf<StageRequest>>>;

export const replySchema = <T extends RequestType>(type: T): SchemaOf<StageReply[T]> =>
  MESSAGES[type].reply as unknown as SchemaOf<StageReply[T]>;
