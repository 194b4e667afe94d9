// What a method of adapters is: what it trains of a linear, its keys in a recipe, and how PEFT's config tells it. How it is computed is src/adapter/NAME.ts.

/** The tensors of a linear: A [rank, in], B [out, rank], DoRA's magnitudes M [out], and VeRA's vectors: lambda_d [rank], lambda_b [out]. */
export const FACTORS = ["A", "B", "M", "lambda_d", "lambda_b"] as const;
export type Factor = (typeof FACTORS)[number];

/** Keys of a recipe that are of some methods. */
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
export type OwnKey = (typeof OWN_KEYS)[number];

export type Definition = {
  /** What is trained of each linear; the rest follows from it. */
  readonly trained: readonly Factor[];
  /** Where a recipe says nothing. */
  readonly rank: number;
  /** Whether the product is multiplied by a factor of alpha and rank. */
  readonly isScaled: boolean;
  /** Keys of a recipe that it has, of those that not all methods have. */
  readonly keys: readonly OwnKey[];
  /** Whether its factors may begin as a part of the weight, which is taken off again: then nothing else of it depends on the weight. */
  readonly beginsAsPart: boolean;
  /** What an adapter_config.json says of it. */
  readonly peft: { readonly peft_type: "LORA" | "VERA"; readonly use_dora?: boolean };
};
