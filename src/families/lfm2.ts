// LFM2 (Liquid AI 2025): most layers have a short gated convolution in the place of attention, the others grouped attention
// with norms of heads. The linears of the MLP are called w1 (gate), w3 (up) and w2 (down).

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { type Defaults, dense, oneRope, readSizes } from "./dense.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2560, kvHeads: 8, headDim: null, intermediate: 12288, vocab: 65536, positions: 128000 },
  ...{ normEps: 1e-5, theta: 1e6, isTied: true },
};
const TAPS = 3;
const { qkv } = dense.groups;

/** The layers that are a convolution where the config has no `layer_types`: all but those of `full_attn_idxs`. */
function othersThanFull(config: ConfigReader, layers: number): boolean[] {
  const full = config.source["full_attn_idxs"] ?? range(layers);
  if (!Array.isArray(full) || !full.every(Number.isInteger))
    throw config.wrong("full_attn_idxs", `is ${JSON.stringify(full)}, expected a list of layers`);
  return range(layers).map((layer) => !full.includes(layer));
}

/** Whether each layer is a convolution, by `layer_types`. */
function readConvolutions(config: ConfigReader, layers: number): boolean[] {
  const types = config.source["layer_types"] ?? null;
  if (!Array.isArray(types) || types.length !== layers)
    throw config.wrong("layer_types", `is ${JSON.stringify(types)}, expected an entry for each of ${counted(layers, "layer")}`);
  return types.map((type, layer) => {
    if (type === "conv" || type === "full_attention") return type === "conv";
    throw config.wrong("layer_types", `has ${JSON.stringify(type)} for layer ${layer}, expected "conv" or "full_attention"`);
  });
}

/** The MLP's features: two thirds of the key's, times a factor, up to a multiple, unless they are not to be adjusted. */
function readIntermediate(config: ConfigReader): number {
  const key = config.source["block_ff_dim"] == null ? "intermediate_size" : "block_ff_dim";
  const given = config.count(key, DEFAULTS.intermediate);
  if (!config.flag("block_auto_adjust_ff_dim", true)) return given;
  const adjusted = Math.floor((2 * given) / 3);
  const multiple = config.count("block_multiple_of", 256);
  return multiple * Math.ceil(Math.floor(config.number("block_ffn_dim_multiplier", 1) * adjusted) / multiple);
}

/** What the dense models and the mixtures share; the size of the MLP is still to be read. */
export function readConvolved(
  config: ConfigReader,
  defaults: Defaults & { readonly theta: number },
  read: (config: ConfigReader, layers: number) => boolean[] = readConvolutions,
) {
  config.only("conv_L_cache", TAPS);
  config.only("conv_bias", false);
  const given = { rms_norm_eps: config.number("norm_eps", defaults.normEps!) };
  const tied = config.source["tie_embedding"] == null ? {} : { tie_word_embeddings: config.flag("tie_embedding", true) };
  const sizes = readSizes(config.with({ ...given, ...tied }), defaults);
  const convolutions = read(config, sizes.layers);
  const rope = readRope(config, { ...sizes, theta: defaults.theta });
  return { ...sizes, ...oneRope(sizes, rope, (layer) => !convolutions[layer]), convolutions };
}

const LINEARS = { op: "linears", residual: null, bias: false } as const;

/** From the normed stream "h1" to "mid". */
function convolution({ hidden }: ModelSpec): readonly Operation[] {
  return [
    { ...LINEARS, from: "h1", to: "bcx", group: "convolutionIn", in: hidden, out: [3 * hidden] },
    { op: "shortConvolution", from: "bcx", to: "convolved", weight: "conv.conv.weight", channels: hidden, taps: TAPS },
    { ...LINEARS, from: "convolved", to: "mid", group: "convolutionOut", in: hidden, out: [hidden], residual: "x" },
  ];
}

function attention(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, heads, kvHeads, headDim, normEps: eps, attentionScale: scale } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const norms = { q: "self_attn.q_layernorm", k: "self_attn.k_layernorm" };
  return [
    { ...LINEARS, from: "h1", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv] },
    { op: "rope", from: "qkv", to: "rotated", heads: of, table: spec.layerRopes[index]!, norms, eps },
    { op: "attention", from: "rotated", to: "attention", heads: of, scale, window: null },
    { ...LINEARS, from: "attention", to: "mid", group: "attentionOut", in: q, out: [hidden], residual: "x" },
  ];
}

/** A layer whose MLP is dense. */
export function convolvedLayer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, normEps: eps, convolutions } = spec;
  const norm = { op: "norm", size: hidden, eps } as const;
  return [
    { ...norm, from: "x", to: "h1", weight: "operator_norm" },
    ...(convolutions[index]! ? convolution(spec) : attention(spec, index)),
    { ...norm, from: "mid", to: "h2", weight: "ffn_norm" },
    { ...LINEARS, from: "h2", to: "gateUp", group: "w13", in: hidden, out: [intermediate, intermediate] },
    { op: "swiglu", from: "gateUp", to: "act" },
    { ...LINEARS, from: "act", to: "out", group: "w2", in: intermediate, out: [hidden], residual: "mid" },
  ];
}

export const CONVOLVED_GROUPS = {
  qkv,
  convolutionIn: ["conv.in_proj"],
  convolutionOut: ["conv.out_proj"],
  attentionOut: ["self_attn.out_proj"],
} as const;

export const lfm2 = {
  architectures: ["Lfm2ForCausalLM"],
  about: { models: "LFM2 and LFM2.5, the dense models (350M to 2.6B)", golden: "families/lfm2", on: "2026-11-30" },
  groups: {
    ...CONVOLVED_GROUPS,
    w13: ["feed_forward.w1", "feed_forward.w3"],
    w2: ["feed_forward.w2"],
  },
  tensors: { ...dense.tensors, norm: "model.embedding_norm.weight" },
  read: (config) => {
    const read = config.source["layer_types"] == null ? othersThanFull : readConvolutions;
    return { ...readConvolved(config, DEFAULTS, read), intermediate: readIntermediate(config) };
  },
  layer: (spec, index) => convolvedLayer(spec, index),
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
