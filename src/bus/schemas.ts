// What a request and a reply must look like, checked where they arrive. The types are those of messages.ts: the compiler sees to it
// that a schema gives what its type says.

import * as v from "valibot";
import { LINEARS } from "../base/spec.ts";
import type { MicroBatch, PackedSequence } from "../schedule/pack.ts";
import type { AdamStep, FactorTensor, SequenceLoss, StageReply, StageReport, StageRequest } from "./messages.ts";

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const real = v.number();
const ints = v.instance(Int32Array);
const floats = v.instance(Float32Array);

type Schema<T> = v.GenericSchema<unknown, T>;

const microBatch: Schema<MicroBatch> = v.strictObject({
  ids: ints,
  positions: ints,
  bounds: ints,
  rowNumber: ints,
  tileAdapter: ints,
  dropout: ints,
  targetRows: ints,
  targetIds: ints,
  weights: floats,
  sequences: v.array(v.strictObject({ adapter: count, firstTarget: count, targets: count }) satisfies Schema<PackedSequence>),
  tokens: count,
});

const adamStep: Schema<AdamStep> = v.strictObject({
  adapter: count,
  t: v.pipe(count, v.minValue(1)),
  learningRate: real,
  beta1: real,
  beta2: real,
  eps: real,
  weightDecay: real,
  coefficient: real,
});

const factor: Schema<FactorTensor> = v.strictObject({
  layer: count,
  linear: v.picklist(LINEARS),
  factor: v.picklist(["A", "B"]),
  values: floats,
});

const losses: Schema<readonly SequenceLoss[] | null> = v.nullable(
  v.array(v.strictObject({ loss: v.union([real, v.nan()]), hits: count })),
);

export const stageReport: Schema<StageReport> = v.strictObject({
  kind: v.picklist(["cpu", "cuda"]),
  name: v.string(),
  compute: v.picklist(["f32", "bf16"]),
  rowTile: count,
  paddedRanks: v.array(count),
  totalBytes: count,
  freeBytes: count,
  note: v.nullable(v.string()),
});

type Request<T extends StageRequest["type"]> = Extract<StageRequest, { readonly type: T }>;

export const REQUESTS: { readonly [T in StageRequest["type"]]: Schema<Request<T>> } = {
  forward: v.strictObject({ type: v.literal("forward"), pass: count, batch: microBatch }),
  backward: v.strictObject({ type: v.literal("backward"), pass: count }),
  evaluate: v.strictObject({ type: v.literal("evaluate"), batch: microBatch }),
  squares: v.strictObject({ type: v.literal("squares") }),
  step: v.strictObject({ type: v.literal("step"), steps: v.array(adamStep) }),
  read: v.strictObject({ type: v.literal("read"), adapter: count }),
  write: v.strictObject({ type: v.literal("write"), adapter: count, factors: v.array(factor) }),
};

export const REPLIES: { readonly [T in StageRequest["type"]]: Schema<StageReply[T]> } = {
  forward: v.null(),
  backward: losses,
  evaluate: losses,
  squares: v.array(floats),
  step: v.null(),
  read: v.array(factor),
  write: v.null(),
};
