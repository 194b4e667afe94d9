// Gemma 4 (2026), the dense models: E2B, E4B, 12B and 31B. Norms multiply by their weights alone and values are normalised,
// too; heads of full layers have another size, and in some models their keys are their values. The last layers of small models
// read the keys and values of an earlier layer of their kind, and every layer has an input of its own from each token.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";
import type { Definition, Heads, Operation } from "./definition.ts";
import { dense, readSizes, slidingLayers } from "./dense.ts";
import { readCap, slidingBut } from "./gemma.ts";
import { type RopeDefaults, readRopeOf } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2304, layers: 30, heads: 8, kvHeads: 4, headDim: 256, intermediate: 9216, vocab: 262144, positions: 131072 },
  isTied: true,
};

/** What is refused: experts, and attention that is not causal. */
function refuse(config: ConfigReader): void {
  config.only("hidden_activation", "gelu_pytorch_tanh");
  if (config.flag("enable_moe_block", false))
    throw new RequestError(
      "model.architecture",
      `${config.path}: enable_moe_block is true, a mixture of experts`,
      "of Gemma 4 the dense models are supported",
    );
  if (config.source["use_bidirectional_attention"] === "all")
    throw new RequestError(
      "model.architecture",
      `${config.path}: use_bidirectional_attention is "all", which makes an encoder`,
      "only causal models are supported",
    );
}

/** Whether each layer has a window; the last never has. */
function readSliding(config: ConfigReader, layers: number): readonly boolean[] {
  const sliding = slidingLayers(config, layers) ?? slidingBut(6, layers);
  return sliding.map((slides, layer) => slides && layer < layers - 1);
}

/** For each layer the last of its kind that has keys and values of its own, null where it is one of those. */
function readSources(config: ConfigReader, sliding: readonly boolean[]): (number | null)[] {
  const shared = config.source["num_kv_shared_layers"] == null ? 0 : config.whole("num_kv_shared_layers");
  const first = sliding.length - shared;
  return sliding.map((slides, layer) => {
    if (layer < first) return null;
    const source = sliding.slice(0, Math.max(0, first)).lastIndexOf(slides);
    if (source >= 0) return source;
    throw config.wrong("num_kv_shared_layers", `${shared} leaves no layer whose keys and values layer ${layer} could read`);
  });
}

type FullHeads = NonNullable<ModelSpec["fullHeads"]>;

/** Heads of the layers without a window; since transformers 5.24 a table says it for each layer. */
function readFullHeads(config: ConfigReader, sizes: FullHeads, keysAsValues: boolean, sliding: readonly boolean[]): FullHeads {
  const table = config.source["per_layer_config"];
  if (table == null) {
    const isGiven = keysAsValues && config.source["num_global_key_value_heads"] != null;
    const kvHeads = isGiven ? config.count("num_global_key_value_heads", null) : sizes.kvHeads;
    return { kvHeads, headDim: config.count("global_head_dim", 512) };
  }
  if (typeof table !== "object" || Array.isArray(table))
    throw config.wrong("per_layer_config", `is ${JSON.stringify(table)}, expected a table`);
  const found = sliding.map((slides, layer) => {
    const kind = slides ? "sliding_attention" : "full_attention";
    const own: unknown = { ...(table as Record<string, object>)[kind], ...(table as Record<string, object>)[layer] };
    const reader = new ConfigReader(own as ConfigObject, `${config.path}: per_layer_config.${layer}`);
    for (const key of Object.keys(reader.source))
      if (key !== "head_dim" && key !== "num_key_value_heads")
        throw reader.wrong(key, "is not known; supported are head_dim and num_key_value_heads");
    const { kvHeads, headDim } = sizes;
    return { kvHeads: reader.count("num_key_value_heads", kvHeads), headDim: reader.count("head_dim", headDim) };
  });
  const isSame = (a: FullHeads, b: FullHeads) => a.kvHeads === b.kvHeads && a.headDim === b.headDim;
  const full = found[sliding.lastIndexOf(false)]!;
  if (found.some((own, layer) => !isSame(own, sliding[layer] ? sizes : full)))
    throw config.wrong("per_layer_config", "has layers of one kind with different heads, which is not supported");
  return full;
}

const isGiven = (value: unknown): boolean => value != null && (typeof value !== "object" || Object.keys(value).length > 0);

const ropeOf = (config: ConfigReader, kind: string, sizes: RopeDefaults) => {
  const rope = readRopeOf(config, kind, sizes);
  if (rope) return rope;
  for (const key of ["rope_scaling", "rope_parameters"])
    if (isGiven(config.source[key]))
      throw config.wrong(key, `is ${JSON.stringify(config.source[key])}, expected rope_parameters with a table of ${kind}`);
  const { headDim, theta } = { theta: 1e6, ...sizes };
  const scaling = kind === "full_attention" ? ({ kind: "proportional", factor: 1, share: 0.25 } as const) : null;
  return { headDim, rotated: headDim, theta, scaling, queryScale: null };
};

/** The heads of a layer. */
const headsOf = ({ heads, kvHeads, headDim, fullHeads, windows }: ModelSpec, layer: number): Heads => ({
  ...{ heads, kvHeads, headDim },
  ...(windows[layer] === null ? fullHeads : null),
});

/** Projections, and what attention reads: q, k and v next to each other, whatever of them the layer has. */
function attended(spec: ModelSpec, layer: number): readonly Operation[] {
  const { hidden, normEps: eps } = spec;
  const heads = headsOf(spec, layer);
  const [q, kv] = [heads.heads * heads.headDim, heads.kvHeads * heads.headDim];
  const linears = { op: "linears", from: "h1", residual: null, in: hidden, bias: spec.qkvBias } as const;
  const rope = { op: "rope", table: spec.layerRopes[layer]!, eps } as const;
  const source = spec.kvSources[layer] ?? null;
  if (source !== null) {
    const alone = { ...heads, kvHeads: 0 };
    return [
      { ...linears, to: "q", group: "q", out: [q] },
      { ...rope, from: "q", to: "rotated", heads: alone, norms: { q: "self_attn.q_norm", k: null } },
      { op: "sharedKv", from: "rotated", to: "attended", heads, source },
    ];
  }
  const isKey = spec.keysAsValues && spec.windows[layer] === null;
  const isSource = spec.kvSources.includes(layer);
  return [
    { ...linears, to: "qkv", ...(isKey ? { group: "qk", out: [q, kv] } : { group: "qkv", out: [q, kv, kv] }) },
    { op: "valueNorm", from: "qkv", to: "normed", heads, isKey, eps },
    {
      ...{ ...rope, from: "normed", to: isSource ? "rotated" : "attended", heads },
      norms: { q: "self_attn.q_norm", k: "self_attn.k_norm" },
    },
    ...(isSource ? [{ op: "keepKv", from: "rotated", to: "attended", heads } as const] : []),
  ];
}

/** What a layer adds of its own input of each token. */
function ownInput(spec: ModelSpec): readonly Operation[] {
  const { hidden, perLayer, normEps: eps } = spec;
  if (perLayer === null) return [];
  const linears = { op: "linears", residual: null, bias: false } as const;
  return [
    { ...linears, from: "fed", to: "gate", group: "perLayerGate", in: hidden, out: [perLayer.size] },
    { op: "perLayer", from: "gate", to: "gated", size: perLayer.size, layers: spec.layers },
    { ...linears, from: "gated", to: "projected", group: "perLayerProjection", in: perLayer.size, out: [hidden] },
    { op: "norm", from: "projected", to: "joined", weight: "post_per_layer_input_norm", size: hidden, eps, residual: "fed" },
  ];
}

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, normEps: eps } = spec;
  const heads = headsOf(spec, index);
  const isWide = spec.doubleWide && (spec.kvSources[index] ?? null) !== null;
  const intermediate = spec.intermediate * (isWide ? 2 : 1);
  const linears = { op: "linears", residual: null, bias: false } as const;
  const norm = { op: "norm", size: hidden, eps } as const;
  return [
    { ...norm, from: "x", to: "h1", weight: "input_layernorm" },
    ...attended(spec, index),
    { op: "attention", from: "attended", to: "attention", heads, scale: spec.attentionScale, window: spec.windows[index]! },
    {
      ...{ ...linears, from: "attention", to: "seen", group: "o", in: heads.heads * heads.headDim },
      ...{ out: [hidden], bias: spec.oBias },
    },
    { ...norm, from: "seen", to: "mid", weight: "post_attention_layernorm", residual: "x" },
    { ...norm, from: "mid", to: "h2", weight: "pre_feedforward_layernorm" },
    { ...linears, from: "h2", to: "gateUp", group: "gateUp", in: hidden, out: [intermediate, intermediate] },
    { op: "geglu", from: "gateUp", to: "act" },
    { ...linears, from: "act", to: "made", group: "down", in: intermediate, out: [hidden] },
    { ...norm, from: "made", to: "fed", weight: "post_feedforward_layernorm", residual: "mid" },
    ...ownInput(spec),
    { op: "scale", from: spec.perLayer === null ? "fed" : "joined", to: "out", factor: "layer_scalar" },
  ];
}

/** Rows of the layers' own embedding, one for each token at least. */
function readOwnVocab(config: ConfigReader, vocab: number): number {
  const rows = config.count("vocab_size_per_layer_input", 262144);
  if (rows < vocab) throw config.wrong("vocab_size_per_layer_input", `${rows} is below vocab_size, ${vocab}`);
  return rows;
}

const { qkv, ...others } = dense.groups;

export const gemma4 = {
  ...dense,
  groups: {
    qkv,
    ...others,
    qk: ["self_attn.q_proj", "self_attn.k_proj"],
    q: ["self_attn.q_proj"],
    perLayerGate: ["per_layer_input_gate"],
    perLayerProjection: ["per_layer_projection"],
  },
  layer,
  tensors: {
    ...dense.tensors,
    own: {
      table: "model.embed_tokens_per_layer.weight",
      projection: "model.per_layer_model_projection.weight",
      norm: "model.per_layer_projection_norm.weight",
    },
  },
  architectures: ["Gemma4ForCausalLM"],
  about: { models: "Gemma 4, the dense models (E2B, E4B, 12B, 31B)", golden: "gemma/gemma4", on: "2026-11-29" },
  read: (config) => {
    refuse(config);
    const sizes = readSizes(config, DEFAULTS);
    const sliding = readSliding(config, sizes.layers);
    const keysAsValues = config.flag("attention_k_eq_v", false);
    const fullHeads = readFullHeads(config, { kvHeads: sizes.kvHeads, headDim: sizes.headDim }, keysAsValues, sliding);
    const window = config.count("sliding_window", 512);
    const own = config.source["hidden_size_per_layer_input"] === 0 ? 0 : config.count("hidden_size_per_layer_input", 256);
    const attentionBias = config.flag("attention_bias", false);
    return {
      ...sizes,
      fullHeads,
      keysAsValues,
      windows: sliding.map((slides) => (slides ? window : null)),
      kvSources: readSources(config, sliding),
      doubleWide: config.flag("use_double_wide_mlp", false),
      perLayer: own === 0 ? null : { size: own, vocab: readOwnVocab(config, sizes.vocab) },
      ropes: [
        ropeOf(config, "full_attention", { ...sizes, headDim: fullHeads.headDim }),
        ropeOf(config, "sliding_attention", { ...sizes, theta: 1e4 }),
      ],
      layerRopes: sliding.map(Number),
      ...{ qkvBias: attentionBias, oBias: attentionBias },
      attentionScale: 1,
      embeddingScale: Math.sqrt(sizes.hidden),
      logitCap: readCap(config, "final_logit_softcapping", null),
    };
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;

/** As config.json calls it where it is all of a model. */
export const gemma4Text = { ...gemma4, architectures: [] } as const satisfies Definition;
