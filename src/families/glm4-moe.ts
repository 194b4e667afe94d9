// GLM 4.5 to 4.7 (GLM-4.5 Team 2025): Llama's attention with heads rotated in part, and, after the first layers, experts that
// DeepSeek's router chooses, next to some that all tokens pass.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { dense, oneRope, readSizes } from "./dense.ts";
import { mixed, PLAIN_EXPERTS, sharedMlp } from "./moe.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 4096, layers: 46, heads: 96, kvHeads: 8, headDim: null, intermediate: 10944, vocab: 151552 },
  ...{ positions: 131072, normEps: 1e-5 },
};

/** DeepSeek V3's router by its keys. */
export function readRouter(config: ConfigReader, count: number, perToken: number) {
  const [groups, keptGroups] = [config.count("n_group", 1), config.count("topk_group", 1)];
  if (count % groups !== 0) throw config.wrong("n_group", `is ${groups}, which does not divide the ${count} experts`);
  if (groups > 1 && count / groups < 2) throw config.wrong("n_group", `is ${groups}, so that groups have fewer than 2 experts`);
  if (keptGroups > groups) throw config.wrong("topk_group", `is ${keptGroups}, more than there are groups, ${groups}`);
  const left = (count / groups) * keptGroups;
  if (perToken > left)
    throw config.wrong("num_experts_per_tok", `is ${perToken}, more than topk_group groups have experts, ${left}`);
  return {
    score: "sigmoid",
    normalise: config.flag("norm_topk_prob", true),
    eps: 1e-20,
    ...{ groups, keptGroups },
    scaling: config.number("routed_scaling_factor", 1),
  } as const;
}

function readExperts(config: ConfigReader, layers: number) {
  const count = config.count("n_routed_experts", 128);
  const perToken = config.count("num_experts_per_tok", 8);
  if (perToken > count) throw config.wrong("num_experts_per_tok", `is ${perToken}, more than there are experts, ${count}`);
  const intermediate = config.count("moe_intermediate_size", 1408);
  const first = config.source["first_k_dense_replace"] === undefined ? 1 : config.whole("first_k_dense_replace");
  return {
    ...PLAIN_EXPERTS,
    ...{ count, perToken, intermediate },
    router: readRouter(config, count, perToken),
    layers: range(layers).map((layer) => layer >= first),
    shared: intermediate * config.count("n_shared_experts", 1),
  };
}

/** A layer whose MLP is experts, after some that all tokens pass, as DeepSeek's files have them. */
export function withSharedExperts(
  operations: readonly Operation[],
  spec: ModelSpec,
  correction: string | null,
): readonly Operation[] {
  const each = { path: "mlp.experts", files: "each", bias: false } as const;
  const mixture = mixed(
    operations,
    spec,
    {
      routerPath: "mlp.gate",
      up: { ...each, group: "expertUp", linears: ["gate_proj", "up_proj"] },
      down: { ...each, group: "expertDown", linears: ["down_proj"] },
    },
    { residual: "shared", correction },
  );
  const { shared } = spec.experts!;
  const ofAll = sharedMlp(spec.hidden, shared!, ["sharedGateUp", "sharedDown"], { to: "shared", residual: "mid" });
  return [...mixture.slice(0, -1), ...ofAll, mixture.at(-1)!];
}

export const glm4moe = {
  ...dense,
  groups: {
    ...dense.groups,
    sharedGateUp: ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"],
    sharedDown: ["mlp.shared_experts.down_proj"],
    expertUp: ["mlp.experts.gate_proj", "mlp.experts.up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  architectures: ["Glm4MoeForCausalLM"],
  about: { models: "GLM 4.5, 4.5-Air, 4.6, 4.7", golden: "families/glm4_moe", on: "2026-11-29" },
  read: (config) => {
    const sizes = readSizes(config, DEFAULTS);
    const half = new ConfigReader({ partial_rotary_factor: 0.5, ...config.source }, config.path);
    return {
      ...sizes,
      ...oneRope(sizes, readRope(half, { ...sizes, isPartial: true })),
      qkvBias: config.flag("attention_bias", false),
      qkNorm: config.flag("use_qk_norm", false),
      experts: readExperts(config, sizes.layers),
    };
  },
  layer: (spec, index) => {
    const operations = dense.layer(spec, index);
    return spec.experts!.layers[index] ? withSharedExperts(operations, spec, "mlp.gate.e_score_correction_bias") : operations;
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
