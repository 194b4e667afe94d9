// What Llama and most of its successors have in common: a norm before attention and before a SwiGLU MLP, each with a residual.

import { RequestError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec, Rope } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { readRope } from "./rope.ts";

/** What transformers assumes where config.json is silent. */
export type Defaults = {
  readonly hidden?: number; // 4096
  readonly layers?: number; // 32
  readonly heads?: number; // 32
  /** Null: as many as query heads. */
  readonly kvHeads: number | null;
  /** Null: hidden_size / num_attention_heads. */
  readonly headDim: number | null;
  readonly intermediate: number;
  readonly vocab: number;
  readonly positions: number;
  readonly normEps?: number; // 1e-6
  readonly theta?: number; // 10000
  readonly isTied?: boolean; // false
};

/** The spec of a model without what only some families have. */
export const PLAIN = {
  tower: "model",
  qkvBias: false,
  oBias: false,
  mlpBias: false,
  qkNorm: false,
  attentionCap: null,
  fullHeads: null,
  keysAsValues: false,
  kvSources: [] as (number | null)[],
  doubleWide: false,
  perLayer: null,
  delta: null,
  mamba: null,
  latent: null,
  convolutions: [] as boolean[],
  attentionLayers: [] as boolean[],
  experts: null,
  embeddingScale: 1,
  embeddingNorm: null,
  postNormEps: null,
  logitScale: 1,
  logitCap: null,
} as const satisfies Partial<ModelSpec>;

/** The sizes of a model, with no windows; its ropes are still to be read. */
export function readSizes(config: ConfigReader, defaults: Defaults) {
  config.only("hidden_act", "silu");
  const heads = config.count("num_attention_heads", defaults.heads ?? 32);
  const hidden = config.count("hidden_size", defaults.hidden ?? 4096);
  if (config.source["head_dim"] == null && defaults.headDim === null && hidden % heads !== 0)
    throw config.wrong("hidden_size", `${hidden} is not a multiple of num_attention_heads, ${heads}`);
  const headDim = config.count("head_dim", defaults.headDim ?? hidden / heads);
  if (headDim % 2 !== 0) throw config.wrong("head_dim", `${headDim} is odd; rotary embedding needs pairs`);
  const kvHeads = config.count("num_key_value_heads", defaults.kvHeads ?? heads);
  if (heads % kvHeads !== 0)
    throw config.wrong("num_key_value_heads", `${kvHeads} does not divide num_attention_heads, ${heads}`);
  const layers = config.layers(defaults.layers ?? 32);
  return {
    ...PLAIN,
    ...{ layers, hidden, heads, kvHeads, headDim },
    windows: sameInAll(layers, null as number | null),
    maxPositions: config.count("max_position_embeddings", defaults.positions),
    attentionScale: 1 / Math.sqrt(headDim),
    intermediate: config.count("intermediate_size", defaults.intermediate),
    vocab: config.count("vocab_size", defaults.vocab),
    normEps: config.number("rms_norm_eps", defaults.normEps ?? 1e-6),
    tiedEmbeddings: config.flag("tie_word_embeddings", defaults.isTied ?? false),
  };
}

/** The sizes of a model with one rope for all layers. */
export function readDense(config: ConfigReader, defaults: Defaults) {
  const sizes = readSizes(config, defaults);
  return { ...sizes, ...oneRope(sizes, readRope(config, { ...sizes, ...(defaults.theta && { theta: defaults.theta }) })) };
}

/** One rope, in the layers that `has` names; left out: in all. */
export const oneRope = (
  { layers }: Pick<ModelSpec, "layers">,
  rope: Rope,
  has: (layer: number) => boolean = () => true,
): { readonly ropes: Rope[]; readonly layerRopes: (number | null)[] } => ({
  ropes: [rope],
  layerRopes: range(layers).map((layer) => (has(layer) ? 0 : null)),
});

/** sliding_window; null where it is null. */
export const readWindow = (config: ConfigReader, fallback: number | null): number | null =>
  config.source["sliding_window"] === null || (fallback === null && config.source["sliding_window"] === undefined)
    ? null
    : config.count("sliding_window", fallback);

/**
 * What was read, if `layer_types` agrees with its windows: for families that transformers reads without that key. Throws a
 * RequestError for a kind that is not known, and for a layer whose kind is another.
 */
export function withLayerTypes<S extends Pick<ModelSpec, "layers" | "windows">>(config: ConfigReader, read: S): S {
  const { layers, windows } = read;
  const other = slidingLayers(config, layers)?.findIndex((slides, layer) => slides !== (windows[layer] !== null)) ?? -1;
  if (other < 0) return read;
  const found = windows[other] === null ? "no sliding window" : `a sliding window of ${windows[other]}`;
  const type = (config.source["layer_types"] as readonly string[])[other];
  throw config.wrong("layer_types", `has "${type}" for layer ${other}, which has ${found} by the other keys`);
}

/** Whether each layer has a window, by `layer_types`; null where the config has none. */
export function slidingLayers(config: ConfigReader, layers: number): readonly boolean[] | null {
  const types = config.source["layer_types"];
  if (types === undefined || types === null) return null;
  if (!Array.isArray(types)) throw config.wrong("layer_types", `is ${JSON.stringify(types)}, expected a list`);
  if (types.length !== layers) throw config.wrong("layer_types", `has ${types.length} entries for ${layers} layers`);
  return types.map((type, layer) => {
    if (type === "sliding_attention" || type === "full_attention") return type === "sliding_attention";
    throw new RequestError(
      "model.architecture",
      `${config.path}: layer_types has ${JSON.stringify(type)} for layer ${layer}`,
      "supported are full_attention and sliding_attention",
    );
  });
}

/** One value for all layers. */
export const sameInAll = <T>(layers: number, value: T): T[] => range(layers).map(() => value);

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, heads, kvHeads, headDim, normEps: eps } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null } as const;
  const table = spec.layerRopes[index]!;
  const rotates = table !== null || spec.qkNorm;
  const norms = spec.qkNorm ? { q: "self_attn.q_norm", k: "self_attn.k_norm" } : null;
  return [
    { op: "norm", from: "x", to: "h1", weight: "input_layernorm", size: hidden, eps },
    { ...linears, from: "h1", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv], bias: spec.qkvBias },
    ...(rotates ? [{ op: "rope", from: "qkv", to: "rotated", heads: of, table, norms, eps } as const] : []),
    {
      ...{ op: "attention", from: rotates ? "rotated" : "qkv", to: "attention", heads: of },
      ...{ scale: spec.attentionScale, window: spec.windows[index]! },
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
