// OLMo 2 (OLMo team 2025) and OLMo 3: norms after attention and MLP in place of those before them, and norms of all of q and of
// all of k. OLMo 3 has windows in three of four layers, and its YaRN in the others alone.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, readDense, readSizes, readWindow, slidingLayers, withLayerTypes } from "./dense.ts";
import { POST_NORMED } from "./gguf.ts";
import { readRopesByKind } from "./rope.ts";

const DEFAULTS = {
  ...{ kvHeads: null, headDim: null, intermediate: 11008, vocab: 50304, positions: 2048, normEps: 1e-5 },
};

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, heads, kvHeads, headDim, normEps: eps, layerRopes, windows, attentionScale: scale } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null, bias: false } as const;
  const norms = { weights: ["self_attn.q_norm", "self_attn.k_norm"], sizes: [q, kv], eps } as const;
  const after = { op: "norm", size: hidden, eps } as const;
  return [
    { ...linears, from: "x", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv], bias: spec.qkvBias },
    { op: "spans", from: "qkv", to: "normed", ...norms },
    { op: "rope", from: "normed", to: "rotated", heads: of, table: layerRopes[index]!, norms: null, eps },
    { op: "attention", from: "rotated", to: "attention", heads: of, scale, window: windows[index]! },
    { ...linears, from: "attention", to: "o", group: "o", in: q, out: [hidden], bias: spec.oBias },
    { ...after, from: "o", to: "mid", weight: "post_attention_layernorm", residual: "x" },
    { ...linears, from: "mid", to: "gateUp", group: "gateUp", in: hidden, out: [intermediate, intermediate] },
    { op: "swiglu", from: "gateUp", to: "act" },
    { ...linears, from: "act", to: "down", group: "down", in: intermediate, out: [hidden] },
    { ...after, from: "down", to: "out", weight: "post_feedforward_layernorm", residual: "mid" },
  ];
}

export const olmo2 = {
  ...dense,
  architectures: ["Olmo2ForCausalLM"],
  gguf: {
    architecture: "olmo2",
    names: POST_NORMED,
    biases: ["qkv"],
    hasWindows: true,
    ropes: ["linear", "yarn"],
    headsFill: true,
    head: "never tied",
  },
  about: { models: "OLMo 2", golden: "families/olmo2", on: "2026-11-29" },
  read: (config) => {
    const attentionBias = config.flag("attention_bias", false);
    return withLayerTypes(config, { ...readDense(config, DEFAULTS), qkvBias: attentionBias, oBias: attentionBias });
  },
  layer,
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;

/** Of old, rope_theta was that of full attention: transformers 5 takes the default for the others. */
function ropesOf(config: ConfigReader, sizes: { readonly headDim: number; readonly maxPositions: number }) {
  const defaults = { ...sizes, theta: 500000 };
  const thetas = { full: config.source["rope_theta"], sliding: undefined };
  return [...readRopesByKind(config, thetas, { full: defaults, sliding: defaults })];
}

export const olmo3 = {
  ...olmo2,
  architectures: ["Olmo3ForCausalLM"],
  about: { models: "OLMo 3", golden: "families/olmo3", on: "2026-11-29" },
  read: (config) => {
    const sizes = readSizes(config, DEFAULTS);
    const sliding = slidingLayers(config, sizes.layers) ?? sizes.windows.map((_, i) => (i + 1) % 4 !== 0);
    const window = readWindow(config, 4096);
    const attentionBias = config.flag("attention_bias", false);
    return {
      ...sizes,
      ropes: ropesOf(config, sizes),
      layerRopes: sliding.map((is) => (is ? 1 : 0)),
      windows: sliding.map((is) => (is ? window : null)),
      ...{ qkvBias: attentionBias, oBias: attentionBias },
    };
  },
} as const satisfies Definition;
