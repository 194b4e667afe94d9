// What Gemma 2 and 3 have in common: norms that multiply by 1 + w, one before and one after attention and MLP each, a GeGLU
// MLP, an embedding scaled by the root of its width, and layers with a window between layers without.

import { RequestError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { type Defaults, dense, readSizes, readWindow } from "./dense.ts";

/** Sizes, scales and caps; windows in the layers that `isSliding` names. */
export function readGemma(config: ConfigReader, defaults: Defaults, isSliding: readonly boolean[] | null) {
  config.only("hidden_activation", "gelu_pytorch_tanh");
  if (config.flag("use_bidirectional_attention", false))
    throw new RequestError(
      "model.architecture",
      `${config.path}: use_bidirectional_attention is true, which makes an encoder`,
      "only causal models are supported",
    );
  const sizes = readSizes(config, { ...defaults, isTied: true });
  const window = readWindow(config, 4096);
  const attentionBias = config.flag("attention_bias", false);
  return {
    ...sizes,
    windows: sizes.windows.map((_, layer) => (isSliding?.[layer] ? window : null)),
    ...{ qkvBias: attentionBias, oBias: attentionBias },
    attentionScale: config.number("query_pre_attn_scalar", 256) ** -0.5,
    embeddingScale: Math.sqrt(sizes.hidden),
  };
}

/** A cap that may be null or left out. */
export const readCap = (config: ConfigReader, key: string, fallback: number | null): number | null =>
  config.source[key] === null || (fallback === null && config.source[key] === undefined) ? null : config.number(key, fallback);

/** Layers with a window, but every `every`th. */
export const slidingBut = (every: number, layers: number): readonly boolean[] =>
  range(layers).map((layer) => (layer + 1) % every !== 0);

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, heads, kvHeads, headDim, normEps: eps } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null } as const;
  const norm = { op: "norm", size: hidden, eps, offset: 1 } as const;
  const norms = spec.qkNorm ? ({ q: "self_attn.q_norm", k: "self_attn.k_norm", offset: 1 } as const) : null;
  return [
    { ...norm, from: "x", to: "h1", weight: "input_layernorm" },
    { ...linears, from: "h1", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv], bias: spec.qkvBias },
    { op: "rope", from: "qkv", to: "rotated", heads: of, table: spec.layerRopes[index]!, norms, eps },
    {
      ...{ op: "attention", from: "rotated", to: "attention", heads: of },
      ...{ scale: spec.attentionScale, window: spec.windows[index]!, cap: spec.attentionCap },
    },
    { ...linears, from: "attention", to: "attended", group: "o", in: q, out: [hidden], bias: spec.oBias },
    { ...norm, from: "attended", to: "mid", weight: "post_attention_layernorm", residual: "x" },
    { ...norm, from: "mid", to: "h2", weight: "pre_feedforward_layernorm" },
    { ...linears, from: "h2", to: "gateUp", group: "gateUp", in: hidden, out: [intermediate, intermediate], bias: false },
    { op: "geglu", from: "gateUp", to: "act" },
    { ...linears, from: "act", to: "made", group: "down", in: intermediate, out: [hidden], bias: false },
    { ...norm, from: "made", to: "out", weight: "post_feedforward_layernorm", residual: "mid" },
  ];
}

export const gemma = {
  ...dense,
  layer,
  finalNormOffset: 1,
  tokenizer: { class: "GemmaTokenizer", isFixed: false },
} as const satisfies Partial<Definition>;
