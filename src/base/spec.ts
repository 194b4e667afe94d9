// The architecture of a base model, as numbers: what `files/config` reads from config.json, what plans and decoders use.

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
  family: v.picklist(["llama", "mistral", "qwen2", "qwen3"]),
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

/** The linear layers of a decoder layer: what an adapter may target, in the order of PEFT's names. */
export const LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] as const;
export type Linear = (typeof LINEARS)[number];

/** Linears that read one input; each group is one matrix product. */
export const GROUPS = {
  qkv: ["q_proj", "k_proj", "v_proj"],
  o: ["o_proj"],
  gateUp: ["gate_proj", "up_proj"],
  down: ["down_proj"],
} as const satisfies Record<string, readonly Linear[]>;
export type Group = keyof typeof GROUPS;
export const GROUP_NAMES = Object.keys(GROUPS) as Group[];

/** Output and input features of a linear: its weight is [out, in]. */
export function linearShape(spec: ModelSpec, linear: Linear): { readonly out: number; readonly in: number } {
  const q = spec.heads * spec.headDim;
  const kv = spec.kvHeads * spec.headDim;
  switch (linear) {
    case "q_proj":
      return { out: q, in: spec.hidden };
    case "k_proj":
    case "v_proj":
      return { out: kv, in: spec.hidden };
    case "o_proj":
      return { out: spec.hidden, in: q };
    case "gate_proj":
    case "up_proj":
      return { out: spec.intermediate, in: spec.hidden };
    case "down_proj":
      return { out: spec.hidden, in: spec.intermediate };
    default:
      return linear satisfies never;
  }
}

/** Where Hugging Face keeps a linear within its layer: "self_attn.q_proj", "mlp.up_proj". */
export const modulePath = (linear: Linear): string =>
  `${linear === "gate_proj" || linear === "up_proj" || linear === "down_proj" ? "mlp" : "self_attn"}.${linear}`;
