// A base model as numbers: what its family reads from config.json (src/families), what plans and stages use.

import { alignUp } from "./shape.ts";

/** Rotary embedding's change of frequencies; `null` in the spec for none. */
export type RopeScaling =
  | { readonly kind: "linear"; readonly factor: number }
  | {
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    };

export type ModelSpec = {
  /** A name of families/registry.ts. */
  readonly family: string;
  readonly layers: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocab: number;
  readonly normEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
  readonly maxPositions: number;
  /** For each layer: how many of the last tokens a token sees, itself counted; `null` for all. */
  readonly windows: readonly (number | null)[];
  /** Bias of q, k and v; of o; of the three linears of the MLP. */
  readonly qkvBias: boolean;
  readonly oBias: boolean;
  readonly mlpBias: boolean;
  /** RMSNorm over each head of q and k before the rotation (Qwen 3). */
  readonly qkNorm: boolean;
  /** The output head is the embedding table. */
  readonly tiedEmbeddings: boolean;
};

/**
 * Rows of the embedding table and of the output head, and columns of logits, as devices hold them: kernels load 16 bytes at a
 * time, so that a vocabulary of 32001 gets seven rows of zeros, which are no tokens.
 */
export const tableRows = ({ vocab }: ModelSpec): number => alignUp(vocab, 8);
