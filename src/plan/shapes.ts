// Well-known base models by name, as numbers: what a benchmark builds with random weights.

import { RequestError } from "../base/errors.ts";
import type { ExactWeights } from "../base/precision.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { specOf } from "../families/registry.ts";

/** As in the model's config.json; the name of the architecture decides its family. */
const shape = (architecture: string, config: Readonly<Record<string, unknown>>): ModelSpec =>
  specOf({ architectures: [architecture], rms_norm_eps: 1e-5, max_position_embeddings: 8192, ...config }, "shapes.ts");

const llama = (
  layers: number,
  hidden: number,
  intermediate: number,
  heads: number,
  kvHeads: number,
  more: Readonly<Record<string, number | boolean>> = {},
) =>
  shape("LlamaForCausalLM", {
    num_hidden_layers: layers,
    hidden_size: hidden,
    intermediate_size: intermediate,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    vocab_size: 32000,
    ...more,
  });

const llama3 = { vocab_size: 128256, rope_theta: 500000 };

export const SHAPES: Readonly<Record<string, ModelSpec>> = {
  "smollm2-135m": llama(30, 576, 1536, 9, 3, { vocab_size: 49152, rope_theta: 100000, tie_word_embeddings: true }),
  "tinyllama-1.1b": llama(22, 2048, 5632, 32, 4),
  "llama2-7b": llama(32, 4096, 11008, 32, 32),
  "llama2-13b": llama(40, 5120, 13824, 40, 40),
  "llama3-8b": llama(32, 4096, 14336, 32, 8, llama3),
  "llama3-70b": llama(80, 8192, 28672, 64, 8, llama3),
  "qwen2.5-7b": shape("Qwen2ForCausalLM", {
    num_hidden_layers: 28,
    hidden_size: 3584,
    intermediate_size: 18944,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    vocab_size: 152064,
    rope_theta: 1e6,
  }),
  "qwen3-8b": shape("Qwen3ForCausalLM", {
    num_hidden_layers: 36,
    hidden_size: 4096,
    intermediate_size: 12288,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    vocab_size: 151936,
    rope_theta: 1e6,
  }),
  "qwen3.5-4b": shape("Qwen3_5ForCausalLM", {
    num_hidden_layers: 32,
    hidden_size: 2560,
    intermediate_size: 9216,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    vocab_size: 248320,
    rope_theta: 1e7,
    max_position_embeddings: 262144,
    tie_word_embeddings: true,
  }),
  "qwen3.5-27b": shape("Qwen3_5ForCausalLM", {
    num_hidden_layers: 64,
    hidden_size: 5120,
    intermediate_size: 17408,
    num_attention_heads: 24,
    num_key_value_heads: 4,
    linear_num_value_heads: 48,
    vocab_size: 248320,
    rope_theta: 1e7,
    max_position_embeddings: 262144,
  }),
  "qwen3-30b-a3b": shape("Qwen3MoeForCausalLM", {
    num_hidden_layers: 48,
    hidden_size: 2048,
    moe_intermediate_size: 768,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    head_dim: 128,
    vocab_size: 151936,
    num_experts: 128,
    num_experts_per_tok: 8,
    norm_topk_prob: true,
    rope_theta: 1e6,
  }),
  "gpt-oss-20b": shape("GptOssForCausalLM", {
    num_hidden_layers: 24,
    num_local_experts: 32,
    quantization_config: { quant_method: "mxfp4" },
  }),
  // As the classes of their configurations in transformers 5.24 have them.
  "smollm3-3b": shape("SmolLM3ForCausalLM", {}),
  "ministral3-8b": shape("Ministral3ForCausalLM", {}),
  "phi4-14b": shape("Phi3ForCausalLM", {
    num_hidden_layers: 40,
    hidden_size: 5120,
    intermediate_size: 17920,
    num_attention_heads: 40,
    num_key_value_heads: 10,
    vocab_size: 100352,
    rope_theta: 250000,
  }),
  // As LiquidAI/LFM2-1.2B and ibm-granite/granite-4.0-h-micro have them.
  "lfm2-1.2b": shape("Lfm2ForCausalLM", {
    num_hidden_layers: 16,
    full_attn_idxs: [2, 5, 8, 10, 12, 14],
    hidden_size: 2048,
    block_ff_dim: 12288,
    num_attention_heads: 32,
  }),
  "granite4-h-micro": shape("GraniteMoeHybridForCausalLM", {
    layer_types: range(40).map((layer) => (layer % 10 === 5 ? "attention" : "mamba")),
    num_hidden_layers: 40,
    hidden_size: 2048,
    shared_intermediate_size: 8192,
    num_local_experts: 0,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    ...{ mamba_n_heads: 64, mamba_d_head: 64, mamba_d_state: 128, mamba_n_groups: 1 },
    vocab_size: 100352,
    position_embedding_type: "nope",
    tie_word_embeddings: true,
    ...{ embedding_multiplier: 12, attention_multiplier: 0.015625, residual_multiplier: 0.22, logits_scaling: 8 },
  }),
  // As deepseek-ai/DeepSeek-V2-Lite and zai-org/GLM-4.7-Flash have them.
  "deepseek-v2-lite": shape("DeepseekV2ForCausalLM", {
    num_hidden_layers: 27,
    hidden_size: 2048,
    intermediate_size: 10944,
    moe_intermediate_size: 1408,
    num_attention_heads: 16,
    q_lora_rank: null,
    ...{ num_experts_per_tok: 6, first_k_dense_replace: 1 },
    rms_norm_eps: 1e-6,
    max_position_embeddings: 163840,
    rope_scaling: {
      ...{ type: "yarn", factor: 40, original_max_position_embeddings: 4096, beta_fast: 32, beta_slow: 1 },
      ...{ mscale: 707e-3, mscale_all_dim: 707e-3 },
    },
  }),
  "glm4.7-flash": shape("Glm4MoeLiteForCausalLM", { rope_theta: 1e6, max_position_embeddings: 202752 }),
  // As google/gemma-3-4b-it, gemma-4-E4B-it and gemma-4-12B-it have them; what is left out is the default of transformers 5.24.
  "gemma3-4b": shape("Gemma3ForCausalLM", {
    num_hidden_layers: 34,
    hidden_size: 2560,
    intermediate_size: 10240,
    sliding_window: 1024,
    rope_scaling: { rope_type: "linear", factor: 8 },
  }),
  "gemma4-e4b": shape("Gemma4ForCausalLM", {
    num_hidden_layers: 42,
    hidden_size: 2560,
    intermediate_size: 10240,
    num_key_value_heads: 2,
    num_kv_shared_layers: 18,
    final_logit_softcapping: 30,
  }),
  "gemma4-12b": shape("Gemma4ForCausalLM", {
    num_hidden_layers: 48,
    hidden_size: 3840,
    intermediate_size: 15360,
    num_attention_heads: 16,
    num_key_value_heads: 8,
    num_global_key_value_heads: 1,
    attention_k_eq_v: true,
    sliding_window: 1024,
    hidden_size_per_layer_input: 0,
    final_logit_softcapping: 30,
  }),
};

/** What of a shape its released files have in a format that may be held as it is. */
export function exactOf(name: string): ExactWeights | null {
  if (NOT_BF16.has(name)) return null;
  const isMxfp4 = shapeOf(name).experts?.isMxfp4 === true;
  return { format: "bf16", others: [], tables: true, ...(isMxfp4 ? { isMxfp4 } : {}) };
}
/** Shapes whose files are in fp16, or fp32. */
const NOT_BF16: ReadonlySet<string> = new Set(["tinyllama-1.1b", "llama2-7b", "llama2-13b"]);

/** The shape of that name. A RequestError lists the names. */
export function shapeOf(name: string): ModelSpec {
  const found = SHAPES[name];
  if (!found || !Object.hasOwn(SHAPES, name))
    throw new RequestError("bench.shape", `no shape is called '${name}'`, `choose one of ${Object.keys(SHAPES).join(", ")}`);
  return found;
}
