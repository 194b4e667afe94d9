// The kinds of adapters: what tells them apart wherever they are read from a recipe, planned, kept and written. How a kind is computed is
// src/adapter/<kind>.ts; its fields in PEFT's files are files/peft.ts's.

import { type Linear, linearShape, type ModelSpec } from "./spec.ts";

/** What a recipe calls its method; left out: "lora". LoRA+ is a LoRA. */
export const METHODS = ["lora", "dora", "vera"] as const;
export type Method = (typeof METHODS)[number];

/** The tensors of a linear: A [rank, in], B [out, rank], DoRA's magnitudes M [out], and VeRA's vectors: lambda_d [rank], lambda_b [out]. */
export const FACTORS = ["A", "B", "M", "lambda_d", "lambda_b"] as const;
export type Factor = (typeof FACTORS)[number];

export type Kind = {
  /** What is trained of each linear; the rest follows from it. */
  readonly trained: readonly Factor[];
  /** Where a recipe says nothing. */
  readonly rank: number;
  /** Whether the product is multiplied by a factor of alpha and rank. */
  readonly isScaled: boolean;
  /** Keys of a recipe that it has, of those that not all kinds have. */
  readonly keys: readonly (typeof OWN_KEYS)[number][];
};

/** Keys of a recipe that are of some kinds. */
export const OWN_KEYS = [
  "alpha",
  "rank_pattern",
  "alpha_pattern",
  "rslora",
  "lora_plus_ratio",
  "init",
  "projection_seed",
  "d_initial",
] as const;

const PATTERNS = ["rank_pattern", "alpha_pattern"] as const;

export const KINDS: Readonly<Record<Method, Kind>> = {
  lora: { trained: ["A", "B"], rank: 16, isScaled: true, keys: ["alpha", ...PATTERNS, "rslora", "lora_plus_ratio", "init"] },
  dora: { trained: ["A", "B", "M"], rank: 16, isScaled: true, keys: ["alpha", ...PATTERNS, "rslora", "init"] },
  // Its ranks cost no parameters: PEFT's default is 256.
  vera: { trained: ["lambda_d", "lambda_b"], rank: 256, isScaled: false, keys: ["projection_seed", "d_initial"] },
};

/** The shape of a factor of a linear. */
export function factorShape(spec: ModelSpec, linear: Linear, factor: Factor, rank: number): readonly number[] {
  const { in: width, out } = linearShape(spec, linear);
  return { A: [rank, width], B: [out, rank], M: [out], lambda_d: [rank], lambda_b: [out] }[factor];
}
