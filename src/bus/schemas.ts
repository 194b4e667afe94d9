// What a request and a reply must look like, checked where they arrive. The types are those of messages.ts: the compiler sees to it
// that a schema gives what its type says.

import * as v from "valibot";
import { WEIGHT_FORMATS } from "../base/precision.ts";
import type { ModelSpec, RopeScaling } from "../base/spec.ts";
import { GROUP_NAMES, LINEARS } from "../families/linears.ts";
import { type Init, isInit } from "../methods/init.ts";
import { PEFT_METHODS } from "../methods/registry.ts";
import { preferenceSchema } from "../objectives/registry.ts";
import type { GenerationBatch } from "../schedule/decode.ts";
import type { MicroBatch, PackedPreference, PackedSequence } from "../schedule/pack.ts";
import type {
  AdmittedAdapter,
  BaseModel,
  KernelSpan,
  OptimizerStep,
  SequenceLoss,
  StageReply,
  StageReport,
  StageRequest,
  StageSetup,
  StageSpan,
} from "./messages.ts";

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const natural = v.pipe(count, v.minValue(1));
const real = v.number();
const ints = v.instance(Int32Array);
const floats = v.instance(Float32Array);

const kind = v.picklist(["cpu", "cuda"]);
const compute = v.picklist(["f32", "bf16"]);
const linears = v.array(v.picklist(LINEARS));

type Schema<T> = v.GenericSchema<unknown, T>;

const packedPreference: Schema<PackedPreference> = v.strictObject({
  objective: preferenceSchema,
  totals: v.strictObject({ rows: count, tokens: count }),
  references: v.nullable(v.array(v.tuple([real, real]))),
  firstSequence: count,
  labels: v.array(v.boolean()),
});

const batchTables = {
  ids: ints,
  positions: ints,
  bounds: ints,
  rowNumber: ints,
  tileAdapter: ints,
  dropout: ints,
  targetRows: ints,
  targetIds: ints,
  weights: floats,
};
const microBatch: Schema<MicroBatch> = v.strictObject({
  ...batchTables,
  sequences: v.array(v.strictObject({ adapter: count, firstTarget: count, targets: count }) satisfies Schema<PackedSequence>),
  preferences: v.array(packedPreference),
  tokens: count,
});
const generationBatch: Schema<GenerationBatch> = v.strictObject({
  ...batchTables,
  places: ints,
  from: v.picklist(["pass", "cache"]),
});

const anyStep = {
  adapter: count,
  t: v.pipe(count, v.minValue(1)),
  learningRate: real,
  ratio: real,
  weightDecay: real,
  coefficient: real,
};
const optimizerStep: Schema<OptimizerStep> = v.union([
  v.strictObject({ ...anyStep, beta1: real, beta2: real, eps: real }),
  v.strictObject({ ...anyStep, momentum: real, nesterov: v.boolean() }),
]);

const admitted: Schema<AdmittedAdapter> = v.strictObject({
  rank: natural,
  scale: real,
  targets: linears,
  places: v.exactOptional(v.strictObject({ ranks: v.array(v.array(count)), scales: v.array(v.array(real)) })),
  seed: count,
  method: v.exactOptional(v.picklist(PEFT_METHODS)),
  projectionSeed: v.exactOptional(count),
  dInitial: v.exactOptional(real),
  init: v.nullable(v.custom<Init>((text) => typeof text === "string" && isInit(text))),
  trainedRank: v.exactOptional(natural),
});
const blockName = v.picklist(["params", "m", "v"]);

const stageSpan: Schema<StageSpan> = v.strictObject({
  kind: v.picklist(["receive", "forward", "backward", "send", "step", "evaluate", "decode"]),
  pass: v.nullable(count),
  adapters: v.array(count),
  start: real,
  end: real,
});
const kernelSpan: Schema<KernelSpan> = v.strictObject({ kernel: v.string(), start: real, end: real });

/** A number, or what came of one that is none. */
const perhaps = v.union([real, v.nan()]);
const losses: Schema<readonly SequenceLoss[] | null> = v.nullable(
  v.array(
    v.strictObject({
      loss: perhaps,
      correct: count,
      similar: v.exactOptional(v.array(perhaps)),
      logProbs: v.exactOptional(floats),
    }),
  ),
);

export const stageReport: Schema<StageReport> = v.strictObject({
  kind,
  name: v.string(),
  compute,
  rowTile: count,
  paddedRanks: v.array(count),
  threads: count,
  totalBytes: count,
  freeBytes: count,
  ordinal: count,
  count,
  note: v.nullable(v.string()),
});

const ropeScaling: Schema<RopeScaling> = v.variant("kind", [
  v.strictObject({ kind: v.literal("linear"), factor: real }),
  v.strictObject({
    kind: v.literal("llama3"),
    factor: real,
    lowFreqFactor: real,
    highFreqFactor: real,
    originalMaxPositions: real,
  }),
]);

const modelSpec: Schema<ModelSpec> = v.strictObject({
  family: v.string(),
  layers: natural,
  hidden: natural,
  intermediate: natural,
  heads: natural,
  kvHeads: natural,
  headDim: natural,
  vocab: natural,
  normEps: real,
  ropeTheta: real,
  ropeScaling: v.nullable(ropeScaling),
  maxPositions: natural,
  windows: v.array(v.nullable(natural)),
  qkvBias: v.boolean(),
  oBias: v.boolean(),
  mlpBias: v.boolean(),
  qkNorm: v.boolean(),
  tiedEmbeddings: v.boolean(),
});

const baseModel: Schema<BaseModel> = v.union([v.strictObject({ folder: v.string() }), v.strictObject({ randomSeed: count })]);

const stageSetup: Schema<StageSetup> = v.strictObject({
  model: baseModel,
  spec: modelSpec,
  layerRange: v.strictObject({ from: count, to: natural, first: v.boolean(), last: v.boolean() }),
  sizes: v.strictObject({
    slots: natural,
    rows: natural,
    targets: natural,
    chunk: natural,
    layers: natural,
    rank: natural,
    recomputation: v.picklist(["none", "selective", "full"]),
    groups: v.array(v.picklist(GROUP_NAMES)),
    methods: v.record(v.picklist(PEFT_METHODS), v.array(v.picklist(GROUP_NAMES))),
    inFlight: count,
    positions: natural,
    format: v.picklist(WEIGHT_FORMATS),
    cache: v.exactOptional(v.strictObject({ sequences: natural, capacity: natural })),
  }),
  device: v.strictObject({ kind, compute, ordinal: count, stagesOnHost: natural }),
  link: v.picklist(["auto", "ipc", "nccl", "shm", "nats"]),
  capacity: v.strictObject({ slots: natural, slotBytes: natural }),
});

type Request<T extends StageRequest["type"]> = Extract<StageRequest, { readonly type: T }>;

export const REQUESTS: { readonly [T in StageRequest["type"]]: Schema<Request<T>> } = {
  open: v.strictObject({ type: v.literal("open"), setup: stageSetup }),
  forward: v.strictObject({ type: v.literal("forward"), pass: count, batch: microBatch }),
  backward: v.strictObject({ type: v.literal("backward"), pass: count, logProbs: v.exactOptional(v.boolean()) }),
  evaluate: v.strictObject({ type: v.literal("evaluate"), batch: microBatch, logProbs: v.exactOptional(v.boolean()) }),
  decode: v.strictObject({ type: v.literal("decode"), batch: generationBatch }),
  squares: v.strictObject({ type: v.literal("squares"), adapters: v.array(count) }),
  step: v.strictObject({ type: v.literal("step"), steps: v.array(optimizerStep) }),
  admit: v.strictObject({ type: v.literal("admit"), slot: count, adapter: admitted, layer: v.exactOptional(count) }),
  read: v.strictObject({ type: v.literal("read"), slot: count, what: v.array(blockName) }),
  write: v.strictObject({
    type: v.literal("write"),
    slot: count,
    blocks: v.strictObject({ params: v.exactOptional(floats), m: v.exactOptional(floats), v: v.exactOptional(floats) }),
  }),
  clock: v.strictObject({ type: v.literal("clock") }),
  peak: v.strictObject({ type: v.literal("peak") }),
  trace: v.strictObject({ type: v.literal("trace"), passes: v.boolean(), kernels: v.boolean() }),
};

export const REPLIES: { readonly [T in StageRequest["type"]]: Schema<StageReply[T]> } = {
  open: v.array(v.string()),
  forward: v.null(),
  backward: losses,
  evaluate: losses,
  decode: v.nullable(v.array(floats)),
  squares: v.array(floats),
  step: v.null(),
  admit: v.null(),
  read: v.array(floats),
  write: v.null(),
  clock: v.strictObject({ now: real, takenBytes: real }),
  peak: real,
  trace: v.strictObject({ spans: v.array(stageSpan), kernels: v.array(kernelSpan) }),
};
