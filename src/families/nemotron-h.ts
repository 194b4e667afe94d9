// Nemotron-H and Nemotron 3 Nano (NVIDIA 2025): each layer is a norm and one of Mamba 2, attention without a rotary embedding,
// an MLP whose activation is the square of what is above 0, or experts of that kind next to one that all tokens pass.

import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, oneRope, readSizes } from "./dense.ts";
import { readRouter } from "./glm4-moe.ts";
import { checkHeads, mamba, TAPS } from "./mamba.ts";
import { type ExpertsSpec, PLAIN_EXPERTS } from "./moe.ts";

const DEFAULTS = { kvHeads: 8, headDim: 128, intermediate: 21504, vocab: 131072, positions: 4096 };

type Kind = "mamba" | "attention" | "mlp" | "moe";
/** By the letters of hybrid_override_pattern, and by the names in layers_block_type. */
const KINDS: Readonly<Record<string, Kind>> = {
  ...{ M: "mamba", "*": "attention", "-": "mlp", E: "moe" },
  ...{ linear_attention: "mamba", mamba: "mamba", full_attention: "attention", attention: "attention", mlp: "mlp", moe: "moe" },
};
const SILENT = ["linear_attention", "moe", "full_attention", "mlp"];

/** What each layer is; the number of layers is that of the list, whatever else the config says. */
function readKinds(config: ConfigReader): readonly Kind[] {
  const { source } = config;
  const key = ["layers_block_type", "layer_types", "hybrid_override_pattern"].find((name) => source[name] != null);
  const given = key === undefined ? SILENT : source[key];
  const types: readonly unknown[] = typeof given === "string" ? [...given] : Array.isArray(given) ? given : [];
  if (types.length === 0) throw config.wrong(key!, `is ${JSON.stringify(given)}, expected the kinds of layers`);
  return types.map((type, layer) => {
    const kind = typeof type === "string" && Object.hasOwn(KINDS, type) ? KINDS[type]! : null;
    if (kind === null)
      throw config.wrong(key!, `has ${JSON.stringify(type)} for layer ${layer}, expected M, *, - or E, or their names`);
    return kind;
  });
}

/** The value of the first key that the config has. */
const first = ({ source }: ConfigReader, ...keys: readonly string[]): string =>
  keys.find((key) => source[key] != null) ?? keys[0]!;

function readMamba(config: ConfigReader, kinds: readonly Kind[]): ModelSpec["mamba"] {
  config.only(first(config, "conv_kernel", "mamba_d_conv"), TAPS);
  config.only("mamba_hidden_act", "silu");
  const groups = first(config, "n_groups", "mamba_n_groups");
  const heads = {
    heads: config.count("mamba_num_heads", 128),
    headDim: config.count("mamba_head_dim", 64),
    groups: config.count(groups, 8),
    stateDim: config.count("ssm_state_size", 128),
  };
  checkHeads(config, heads, groups);
  return {
    heads,
    // transformers 5.24 passes over time_step_limit.
    limits: { least: config.number(first(config, "time_step_min", "mamba_dt_min"), 0.001), most: null },
    convolutionBias: config.flag(first(config, "use_conv_bias", "mamba_conv_bias"), true),
    bias: config.flag("use_bias", false),
    normEps: config.number("layer_norm_epsilon", 1e-5),
    layers: kinds.map((kind) => kind === "mamba"),
  };
}

function readExperts(config: ConfigReader, kinds: readonly Kind[]): ExpertsSpec | null {
  if (!kinds.includes("moe")) return null;
  if (config.source["moe_latent_size"] != null)
    throw config.wrong(
      "moe_latent_size",
      `is ${config.source["moe_latent_size"]}; experts of projected features are not supported`,
    );
  const count = config.count(first(config, "n_routed_experts", "num_local_experts"), 8);
  const perToken = config.count("num_experts_per_tok", 2);
  if (perToken > count) throw config.wrong("num_experts_per_tok", `is ${perToken}, more than there are experts, ${count}`);
  return {
    ...PLAIN_EXPERTS,
    ...{ count, perToken },
    intermediate: config.count("moe_intermediate_size", 7688),
    router: readRouter(config, count, perToken),
    layers: kinds.map((kind) => kind === "moe"),
    shared: config.count("moe_shared_expert_intermediate_size", 7688),
  };
}

const LINEARS = { op: "linears", residual: null } as const;

function attention(spec: ModelSpec): readonly Operation[] {
  const { hidden, heads, kvHeads, headDim, attentionScale: scale } = spec;
  const of = { heads, kvHeads, headDim };
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  return [
    { ...LINEARS, from: "h1", to: "qkv", group: "mixerQkv", in: hidden, out: [q, kv, kv], bias: false },
    { op: "attention", from: "qkv", to: "attention", heads: of, scale, window: null },
    { ...LINEARS, from: "attention", to: "out", group: "mixerO", in: q, out: [hidden], bias: false, residual: "x" },
  ];
}

/** From the normed stream "h1" to `to`, the stream "x" with what an MLP of `width` features adds. */
const mlp = (
  { hidden, mlpBias: bias }: ModelSpec,
  width: number,
  [up, down]: readonly [string, string],
  to: string,
): readonly Operation[] => [
  { ...LINEARS, from: "h1", to: "up", group: up, in: hidden, out: [width], bias },
  { op: "squaredRelu", from: "up", to: "act" },
  { ...LINEARS, from: "act", to, group: down, in: width, out: [hidden], bias, residual: "x" },
];

function experts(spec: ModelSpec): readonly Operation[] {
  const { count, perToken, intermediate, router, shared, files } = spec.experts!;
  const { hidden } = spec;
  const each = { path: "mixer.experts", files, bias: false } as const;
  return [
    ...mlp(spec, shared!, ["mixerSharedUp", "mixerSharedDown"], "shared"),
    {
      ...{ op: "experts", from: "h1", to: "out", residual: "shared", count, perToken, router },
      ...{ routerPath: "mixer.gate", routerBias: false, correction: "mixer.gate.e_score_correction_bias" },
      activation: { squares: true, interleaved: false, clamp: null },
      up: { ...each, group: "mixerExpertUp", linears: ["up_proj"], in: hidden, out: [intermediate] },
      down: { ...each, group: "mixerExpertDown", linears: ["down_proj"], in: intermediate, out: [hidden] },
    },
  ];
}

function mixer(spec: ModelSpec, index: number): readonly Operation[] {
  if (spec.mamba!.layers[index]) return mamba(spec, "mixer", { groups: ["mixerIn", "mixerOut"], to: "out" });
  if (spec.experts?.layers[index]) return experts(spec);
  return spec.attentionLayers[index] ? attention(spec) : mlp(spec, spec.intermediate, ["mixerUp", "mixerDown"], "out");
}

export const nemotronH = {
  architectures: ["NemotronHForCausalLM"],
  about: { models: "Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano", golden: "families/nemotron_h", on: "2026-11-30" },
  groups: {
    mixerQkv: ["mixer.q_proj", "mixer.k_proj", "mixer.v_proj"],
    mixerO: ["mixer.o_proj"],
    mixerIn: ["mixer.in_proj"],
    mixerOut: ["mixer.out_proj"],
    mixerUp: ["mixer.up_proj"],
    mixerDown: ["mixer.down_proj"],
    mixerSharedUp: ["mixer.shared_experts.up_proj"],
    mixerSharedDown: ["mixer.shared_experts.down_proj"],
    mixerExpertUp: ["mixer.experts.up_proj"],
    mixerExpertDown: ["mixer.experts.down_proj"],
  },
  unadapted: ["mixer.out_proj"],
  tensors: { ...dense.tensors, embedding: "model.embeddings.weight", norm: "model.norm_f.weight" },
  read: (config) => {
    config.only("mlp_hidden_act", "relu2");
    config.only("attention_bias", false);
    const kinds = readKinds(config);
    const given = {
      num_hidden_layers: kinds.length,
      rms_norm_eps: config.number("layer_norm_epsilon", 1e-5),
      hidden_act: "silu",
    };
    const sizes = readSizes(config.with(given), DEFAULTS);
    const rope = { headDim: sizes.headDim, rotated: sizes.headDim, theta: 10000, scaling: null, queryScale: null };
    return {
      ...sizes,
      ...oneRope(sizes, rope, () => false),
      mlpBias: config.flag("mlp_bias", false),
      attentionLayers: kinds.map((kind) => kind === "attention"),
      mamba: readMamba(config, kinds),
      experts: readExperts(config, kinds),
    };
  },
  layer: (spec, index) => [
    { op: "norm", from: "x", to: "h1", weight: "norm", size: spec.hidden, eps: spec.normEps },
    ...mixer(spec, index),
  ],
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
