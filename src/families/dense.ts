// What Llama, Mistral and Qwen 2 and 3 have in common: a norm before attention and before a SwiGLU MLP, each with a residual,
// and one rope for all layers.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type ConfigReader, readRope } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";

/** What transformers assumes where config.json is silent. */
type Defaults = {
  readonly layers?: number; // 32
  readonly heads?: number; // 32
  /** Null: as many as query heads. */
  readonly kvHeads: number | null;
  /** Null: hidden_size / num_attention_heads. */
  readonly headDim: number | null;
  readonly intermediate: number;
  readonly vocab: number;
  readonly positions: number;
};

/** The sizes of a model, and its rope. */
export function readSizes(config: ConfigReader, defaults: Defaults) {
  config.only("hidden_act", "silu");
  config.only("partial_rotary_factor", 1);
  const heads = config.count("num_attention_heads", defaults.heads ?? 32);
  const hidden = config.count("hidden_size", 4096);
  if (config.source["head_dim"] == null && hidden % heads !== 0)
    throw config.wrong("hidden_size", `${hidden} is not a multiple of num_attention_heads, ${heads}`);
  const headDim = config.count("head_dim", defaults.headDim ?? hidden / heads);
  if (headDim % 2 !== 0) throw config.wrong("head_dim", `${headDim} is odd; rotary embedding needs pairs`);
  const kvHeads = config.count("num_key_value_heads", defaults.kvHeads ?? heads);
  if (heads % kvHeads !== 0)
    throw config.wrong("num_key_value_heads", `${kvHeads} does not divide num_attention_heads, ${heads}`);
  const layers = config.count("num_hidden_layers", defaults.layers ?? 32);
  const maxPositions = config.count("max_position_embeddings", defaults.positions);
  return {
    ...readRope(config, maxPositions),
    ...{ layers, hidden, heads, kvHeads, headDim, maxPositions },
    intermediate: config.count("intermediate_size", defaults.intermediate),
    vocab: config.count("vocab_size", defaults.vocab),
    normEps: config.number("rms_norm_eps", 1e-6),
    tiedEmbeddings: config.flag("tie_word_embeddings", false),
  };
}

/** One window for all layers, or null for none. */
export const sameWindows = (layers: number, window: number | null): (number | null)[] => range(layers).map(() => window);

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, heads, kvHeads, headDim, normEps: eps } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null } as const;
  const norms = spec.qkNorm ? { q: "self_attn.q_norm", k: "self_attn.k_norm" } : null;
  return [
    { op: "norm", from: "x", to: "h1", weight: "input_layernorm", size: hidden, eps },
    { ...linears, from: "h1", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv], bias: spec.qkvBias },
    { op: "rope", from: "qkv", to: "rotated", heads: of, norms, eps },
    {
      op: "attention",
      from: "rotated",
      to: "attention",
      heads: of,
      scale: 1 / Math.sqrt(headDim),
      window: spec.windows[index]!,
    },
    { ...linears, from: "attention", to: "mid", group: "o", in: q, out: [hidden], bias: spec.oBias, residual: "x" },
    { op: "norm", from: "mid", to: "h2", weight: "post_attention_layernorm", size: hidden, eps },
    {
      ...linears,
      from: "h2",
      to: "gateUp",
      group: "gateUp",
      in: hidden,
      out: [intermediate, intermediate],
      bias: spec.mlpBias,
    },
    { op: "swiglu", from: "gateUp", to: "act" },
    { ...linears, from: "act", to: "out", group: "down", in: intermediate, out: [hidden], bias: spec.mlpBias, residual: "mid" },
  ];
}

export const dense = {
  groups: {
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    o: ["self_attn.o_proj"],
    gateUp: ["mlp.gate_proj", "mlp.up_proj"],
    down: ["mlp.down_proj"],
  },
  layer,
  tensors: {
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    norm: "model.norm.weight",
    head: "lm_head.weight",
  },
} as const satisfies Partial<Definition>;
