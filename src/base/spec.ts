// A base model as numbers: what its family reads from config.json (src/families), what plans and stages use.

import * as v from "valibot";
import { natural, type Output, real } from "./schema.ts";
import { alignUp } from "./shape.ts";

/** Rotary embedding's change of frequencies; `null` in the spec for none. */
const ropeScaling = v.variant("kind", [
  v.strictObject({ kind: v.literal("linear"), factor: real }),
  v.strictObject({
    kind: v.literal("llama3"),
    factor: real,
    lowFreqFactor: real,
    highFreqFactor: real,
    originalMaxPositions: real,
  }),
]);
export type RopeScaling = Output<typeof ropeScaling>;

export const modelSpec = v.strictObject({
  /** A name of families/registry.ts. */
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
  /** For each layer: the number of latest tokens that a token sees, itself included; `null` for all. */
  windows: v.array(v.nullable(natural)),
  /** Bias of q, k and v; of o; of the three linears of the MLP. */
  qkvBias: v.boolean(),
  oBias: v.boolean(),
  mlpBias: v.boolean(),
  /** RMSNorm over each head of q and k before the rotation (Qwen 3). */
  qkNorm: v.boolean(),
  /** The output head is the embedding table. */
  tiedEmbeddings: v.boolean(),
});
export type ModelSpec = Output<typeof modelSpec>;

/**
 * Rows of the embedding table and of the output head, and columns of logits, as devices hold them: kernels load 16 bytes at a
 * time, so that a vocabulary of 32001 gets seven rows of zeros, which are no tokens.
 */
export const tableRows = ({ vocab }: ModelSpec): number => alignUp(vocab, 8);
