// The text tower of Muse-Glimmer (Meta 2026): norms before and after attention and MLP, norms without weights of each head and
// of the embedding, attention that is gated by a linear of its input, and no rotary embedding in every fourth layer.

import { RequestError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, readSizes, readWindow, slidingLayers } from "./dense.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 6656, layers: 52, heads: 32, kvHeads: 2, headDim: 128, intermediate: 19968, vocab: 202048 },
  ...{ positions: 131072, normEps: 1e-5 },
};

/** Whether a layer is a fourth, counted from the last. */
const isFourth = (layers: number, layer: number): boolean => (layers - 1 - layer) % 4 === 0;

/**
 * For each layer whether it has the rope: layer_rope_theta is 0 where it has none; transformers reads no other theta from it.
 */
function rotating(config: ConfigReader, layers: number): readonly boolean[] {
  const thetas = config.source["layer_rope_theta"];
  if (thetas == null) return range(layers).map((layer) => !isFourth(layers, layer));
  if (!Array.isArray(thetas) || thetas.length !== layers || !thetas.every((theta) => typeof theta === "number" && theta >= 0))
    throw config.wrong(
      "layer_rope_theta",
      `is ${JSON.stringify(thetas)}, expected a number for each of ${counted(layers, "layer")}`,
    );
  return thetas.map((theta) => theta !== 0);
}

function layer(spec: ModelSpec, index: number): readonly Operation[] {
  const { hidden, intermediate, heads, kvHeads, headDim, normEps: eps, attentionScale: scale } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = { op: "linears", residual: null, bias: false } as const;
  const before = { op: "norm", size: hidden, eps, offset: 1 } as const;
  const after = { ...before, eps: spec.postNormEps ?? eps } as const;
  const norms = { q: null, k: null };
  return [
    { ...before, from: "x", to: "h1", weight: "input_layernorm" },
    { ...linears, from: "h1", to: "qkv", group: "qkv", in: hidden, out: [q, kv, kv], bias: spec.qkvBias },
    { ...linears, from: "h1", to: "gate", group: "attentionGate", in: hidden, out: [q] },
    { op: "rope", from: "qkv", to: "rotated", heads: of, table: spec.layerRopes[index]!, norms, eps },
    { op: "attention", from: "rotated", to: "attention", heads: of, scale, window: spec.windows[index]! },
    { op: "gate", from: "attention", to: "gated", gate: "gate" },
    { ...linears, from: "gated", to: "o", group: "o", in: q, out: [hidden], bias: spec.oBias },
    { ...after, from: "o", to: "mid", weight: "post_attention_layernorm", residual: "x" },
    { ...before, from: "mid", to: "h2", weight: "pre_feedforward_layernorm" },
    { ...linears, from: "h2", to: "gateUp", group: "gateUp", in: hidden, out: [intermediate, intermediate] },
    { op: "swiglu", from: "gateUp", to: "act" },
    { ...linears, from: "act", to: "down", group: "down", in: intermediate, out: [hidden] },
    { ...after, from: "down", to: "out", weight: "post_feedforward_layernorm", residual: "mid" },
  ];
}

export const museGlimmer = {
  ...dense,
  architectures: [],
  about: { models: "Muse-Glimmer 30B", golden: "families/muse_glimmer", on: "2026-11-29" },
  groups: { ...dense.groups, attentionGate: ["self_attn.gate_proj"] },
  read: (config) => {
    const { source, path } = config;
    config.only("hidden_activation", "silu");
    const sizes = readSizes(config, DEFAULTS);
    const { layers, headDim, normEps } = sizes;
    const has = rotating(config, layers);
    const sliding = slidingLayers(config, layers) ?? range(layers).map((index) => !isFourth(layers, index));
    const window = readWindow(config, 2048);
    if (source["final_logit_softcapping"] === null)
      throw new RequestError("model.architecture", `${path}: final_logit_softcapping is null`, "expected a number above 0");
    const attentionBias = config.flag("attention_bias", false);
    return {
      ...sizes,
      ropes: [readRope(config, sizes)],
      layerRopes: has.map((is) => (is ? 0 : null)),
      windows: sliding.map((is) => (is ? window : null)),
      attentionScale: config.number("qk_scale_factor", 3.87) / Math.sqrt(headDim),
      embeddingNorm: normEps,
      postNormEps: config.number("post_norm_eps", 1e-8),
      logitScale: config.number("output_multiplier", 0.19611613513818404),
      logitCap: config.number("final_logit_softcapping", 20),
      ...{ qkvBias: attentionBias, oBias: attentionBias },
    };
  },
  layer,
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
