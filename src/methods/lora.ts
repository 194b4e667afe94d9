// LoRA (Hu et al. 2021): y += scale B (A drop(x)). LoRA+ is a LoRA whose B learns at a rate of its own.

import * as v from "valibot";
import { about, expected, oneOf, patternTable, positive, tableOf, text, truth, whole } from "../base/check.ts";
import { define, type Merged, type MergeRows, MOST_RANK, type PeftFields } from "./definition.ts";
import { initSchema } from "./init.ts";
import { EXPERT_SHARINGS } from "./sharing.ts";

const tokens = v.pipe(
  v.array(v.union([text, whole(0, 1 << 24)], expected("a token's text or its id")), expected("a list of tokens")),
  v.minLength(1, "is empty, expected at least one token"),
);
const trainableTokens = v.union(
  [
    tokens,
    v.pipe(
      tableOf(text, tokens),
      v.check((tables) => Object.keys(tables).length > 0, "is empty, expected embed_tokens or lm_head"),
    ),
  ],
  expected("a list of one or more tokens, by text or id, or { embed_tokens, lm_head }"),
);

/** Keys of methods that train A and B. */
export const lowRankKeys = {
  alpha: about(positive(), "what is added is scaled by alpha / rank", 32),
  rslora: about(truth, "scale by alpha / sqrt(rank)", false),
  init: about(initSchema, "how the factors begin, in PEFT's words", "default"),
  rank_pattern: about(
    patternTable(whole(1, MOST_RANK)),
    "ranks by regular expressions of the ends of module paths; the first that matches counts",
  ),
  alpha_pattern: about(patternTable(positive()), "alphas, likewise"),
};

/** The config of PEFT's LoraConfig. */
export const loraConfig = (fields: PeftFields, useDora: boolean) => ({
  alpha_pattern: fields.alphaPattern,
  auto_mapping: null,
  base_model_name_or_path: fields.baseModel,
  bias: "none",
  corda_config: null,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: fields.layers,
  loftq_config: {},
  lora_alpha: fields.alpha,
  lora_bias: false,
  lora_dropout: fields.dropout,
  megatron_config: null,
  megatron_core: "megatron.core",
  modules_to_save: null,
  peft_type: "LORA",
  r: fields.rank,
  rank_pattern: fields.rankPattern,
  revision: null,
  target_modules: fields.targets,
  target_parameters: fields.parameters,
  task_type: "CAUSAL_LM",
  trainable_token_indices: fields.tokens ?? null,
  use_dora: useDora,
  use_rslora: fields.rslora,
});

const configKeys: readonly string[] = [
  ...[
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "use_rslora",
    "init_lora_weights",
    "qalora_group_size",
    "target_parameters",
  ],
  ...["eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config"], // tables of an initialisation
];

/** W + scale B A. */
function merge({ width, rank, scale, tensor }: Merged): MergeRows {
  const [a, b] = [tensor("A"), tensor("B")];
  return (rows, first) => {
    addProduct(rows, width, b.subarray(first * rank, first * rank + (rows.length / width) * rank), a, scale);
  };
}

export const lora = define({
  title: "LoRA",
  tensors: {
    A: { axes: "rank in", initial: "init", peft: "lora_A.weight" },
    B: { axes: "out rank", initial: "init", peft: "lora_B.weight" },
  },
  actsInExperts: true,
  rank: 16,
  keys: {
    ...lowRankKeys,
    experts: about(
      oneOf(...EXPERT_SHARINGS),
      "in experts that it targets: all share one A of gate and up and one B of down, or each has its own",
      "shared-outer",
    ),
    lora_plus_ratio: about(positive(), "LoRA+: the learning rate of B over that of A", 1),
    trainable_tokens: about(
      trainableTokens,
      "single tokens whose rows of the embedding are trained, by text or id; { embed_tokens, lm_head } has a list of each",
    ),
  },
  settings: [],
  continued: ["alpha", "rslora"],
  beginsAsPart: true,
  trainsTables: true,
  peft: {
    peftType: "LORA",
    isOf: (config) => config["use_dora"] !== true,
    dropout: "lora_dropout",
    keys: configKeys,
    config: (fields) => loraConfig(fields, false),
  },
  merge,
});

/** Adds scale B A to rows of `width` values. B has as many rows, A as many as B has columns. Sums are in f64, rounded once. */
function addProduct(values: Float32Array, width: number, b: Float32Array, a: Float32Array, scale: number): void {
  const rank = a.length / width;
  const rows = values.length / width;
  const sums = new Float64Array(width);
  for (let row = 0; row < rows; row++) {
    sums.fill(0);
    for (let r = 0; r < rank; r++) {
      const factor = b[row * rank + r]!;
      const first = r * width;
      for (let i = 0; i < width; i++) sums[i] = sums[i]! + factor * a[first + i]!;
    }
    const first = row * width;
    for (let i = 0; i < width; i++) values[first + i] = values[first + i]! + scale * sums[i]!;
  }
}
