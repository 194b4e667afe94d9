// Qwen 3.5, 3.6 and 3.8 (2026), the dense models: three layers of linear attention by the gated delta rule to one of attention
// whose heads are gated by features of their query's own projection. Norms multiply by 1 + w, that of the delta rule's output
// by w. Text has one position for time, height and width, so that their rope of three parts is the plain one.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { type Defaults, dense, oneRope, readSizes } from "./dense.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ heads: 16, kvHeads: 4, headDim: 256, intermediate: 12288, vocab: 248320, positions: 32768 },
};
const TAPS = 4;

/** Whether each layer has linear attention. */
function readLinear(config: ConfigReader, layers: number): boolean[] {
  const types = config.source["layer_types"];
  if (types == null) {
    const every = config.count("full_attention_interval", 4);
    return range(layers).map((layer) => (layer + 1) % every !== 0);
  }
  if (!Array.isArray(types) || types.length !== layers)
    throw config.wrong("layer_types", `is ${JSON.stringify(types)}, expected an entry for each of ${counted(layers, "layer")}`);
  return types.map((type, layer) => {
    if (type === "linear_attention" || type === "full_attention") return type === "linear_attention";
    throw config.wrong(
      "layer_types",
      `has ${JSON.stringify(type)} for layer ${layer}, expected "linear_attention" or "full_attention"`,
    );
  });
}

function readHeads(config: ConfigReader): NonNullable<ModelSpec["delta"]>["heads"] {
  const [keyHeads, valueHeads] = [config.count("linear_num_key_heads", 16), config.count("linear_num_value_heads", 32)];
  if (valueHeads % keyHeads !== 0)
    throw config.wrong("linear_num_key_heads", `${keyHeads} does not divide linear_num_value_heads, ${valueHeads}`);
  const [keyDim, valueDim] = [config.count("linear_key_head_dim", 128), config.count("linear_value_head_dim", 128)];
  return { keyHeads, valueHeads, keyDim, valueDim };
}

/** From the normed stream "h1" to "qkvz", q, k, v and z of all heads, and "gates", b and a. */
type Projections = (spec: ModelSpec) => readonly Operation[];

const LINEARS = { op: "linears", residual: null, bias: false } as const;

/** The features of q, k and v, and of v. */
export function deltaWidths({ delta }: ModelSpec) {
  const { keyHeads, keyDim, valueHeads, valueDim } = delta!.heads;
  return { mixed: 2 * keyHeads * keyDim + valueHeads * valueDim, value: valueHeads * valueDim };
}

const projections: Projections = (spec) => {
  const { mixed, value } = deltaWidths(spec);
  const { valueHeads } = spec.delta!.heads;
  return [
    { ...LINEARS, from: "h1", to: "qkvz", group: "deltaIn", in: spec.hidden, out: [mixed, value] },
    { ...LINEARS, from: "h1", to: "gates", group: "deltaGates", in: spec.hidden, out: [valueHeads, valueHeads] },
  ];
};

/** From the normed stream "h1" to what the layer's attention adds to it. */
function linearAttention(spec: ModelSpec, projected: Projections): readonly Operation[] {
  const { hidden, normEps: eps } = spec;
  const { heads } = spec.delta!;
  const { mixed, value } = deltaWidths(spec);
  const path = "linear_attn";
  return [
    ...projected(spec),
    {
      ...{ op: "convolution", from: "qkvz", to: "mixed", weight: `${path}.conv1d.weight`, bias: null },
      ...{ first: 0, channels: mixed, taps: TAPS },
    },
    {
      ...{ op: "deltaRule", from: "mixed", to: "read", heads, gates: "gates" },
      ...{ decay: `${path}.A_log`, bias: `${path}.dt_bias` },
    },
    { op: "gatedNorm", from: "read", to: "gated", gate: "qkvz", weight: `${path}.norm`, size: heads.valueDim, eps },
    { ...LINEARS, from: "gated", to: "mid", group: "deltaOut", in: value, out: [hidden], residual: "x" },
  ];
}

function fullAttention(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, heads, kvHeads, headDim, normEps: eps, attentionScale: scale } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null } as const;
  const norms = { q: "self_attn.q_norm", k: "self_attn.k_norm", offset: 1 } as const;
  return [
    { ...linears, from: "h1", to: "projected", group: "qkv", in: hidden, out: [2 * q, kv, kv], bias: spec.qkvBias },
    { op: "ungated", from: "projected", to: "qkv", heads: of },
    { op: "rope", from: "qkv", to: "rotated", heads: of, table: spec.layerRopes[index]!, norms, eps },
    { op: "attention", from: "rotated", to: "attention", heads: of, scale, window: null },
    { op: "gate", from: "attention", to: "gated", gate: "projected", heads: of },
    { ...linears, from: "gated", to: "mid", group: "o", in: q, out: [hidden], bias: spec.oBias, residual: "x" },
  ];
}

/** A layer whose MLP is dense. */
export function hybridLayer(spec: ModelSpec, index: number, projected = projections): readonly Operation[] {
  const { hidden, intermediate, normEps: eps } = spec;
  const norm = { op: "norm", size: hidden, eps, offset: 1 } as const;
  return [
    { ...norm, from: "x", to: "h1", weight: "input_layernorm" },
    ...(spec.delta!.layers[index]! ? linearAttention(spec, projected) : fullAttention(spec, index)),
    { ...norm, from: "mid", to: "h2", weight: "post_attention_layernorm" },
    { ...LINEARS, from: "h2", to: "gateUp", group: "gateUp", in: hidden, out: [intermediate, intermediate] },
    { op: "swiglu", from: "gateUp", to: "act" },
    { ...LINEARS, from: "act", to: "out", group: "down", in: intermediate, out: [hidden], residual: "mid" },
  ];
}

/** Of a model whose layers have linear or gated attention. */
export function readHybrid(config: ConfigReader, defaults: Defaults) {
  config.only("linear_conv_kernel_dim", TAPS);
  const sizes = readSizes(config, defaults);
  const linear = readLinear(config, sizes.layers);
  const partial = new ConfigReader({ partial_rotary_factor: 0.25, ...config.source }, config.path);
  const rope = readRope(partial, { ...sizes, isPartial: true });
  const attentionBias = config.flag("attention_bias", false);
  return {
    ...sizes,
    ...oneRope(sizes, rope, (index) => !linear[index]),
    delta: { heads: readHeads(config), layers: linear },
    ...{ qkvBias: attentionBias, oBias: attentionBias },
  };
}

export const qwen35 = {
  ...dense,
  architectures: ["Qwen3_5ForCausalLM"],
  about: { models: "Qwen 3.5, 3.6 and 3.8, the dense models (0.8B to 27B)", golden: "families/qwen3_5", on: "2026-11-29" },
  groups: {
    ...dense.groups,
    deltaIn: ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z"],
    deltaGates: ["linear_attn.in_proj_b", "linear_attn.in_proj_a"],
    deltaOut: ["linear_attn.out_proj"],
  },
  read: (config) => readHybrid(config, DEFAULTS),
  layer: (spec, index) => hybridLayer(spec, index),
  finalNormOffset: 1,
  // Whatever class tokenizer_config.json names (transformers 5.24: those of the released files are wrong).
  tokenizer: { class: "Qwen3_5Tokenizer", isFixed: true },
} as const satisfies Definition;

/** As config.json calls it where it is all of a model; then the class that tokenizer_config.json names is right. */
export const qwen35Text = {
  ...qwen35,
  architectures: [],
  tokenizer: { class: "Qwen3_5Tokenizer", isFixed: false },
} as const satisfies Definition;
