// DeepSeek V2 and V3 (DeepSeek-AI 2024), and what is built like them: attention over latents, and after the first layers
// experts next to some that all tokens pass. V2 chooses by a softmax, greedily or among the groups with the best experts; V3 by
// a sigmoid of each with a correction.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition, Operation } from "./definition.ts";
import { glm4moe, readRouter, withSharedExperts } from "./glm4-moe.ts";
import { isInterleaved, latent, readLatent } from "./latent.ts";
import { type ExpertsSpec, PLAIN_EXPERTS } from "./moe.ts";

type ExpertDefaults = {
  readonly count: number;
  readonly perToken: number | null;
  readonly intermediate: number;
  readonly shared: number;
  readonly scaling: number;
  readonly groups: number;
  readonly keptGroups: number;
};

/** By the keys of DeepSeek's files, but for what the router does. `layers`: which have experts. */
export function readExperts(
  config: ConfigReader,
  layers: readonly boolean[],
  defaults: ExpertDefaults,
  router: (config: ConfigReader, count: number, perToken: number) => ExpertsSpec["router"],
): ExpertsSpec {
  config.only("moe_layer_freq", 1);
  const count = config.count("n_routed_experts", defaults.count);
  const perToken = config.count("num_experts_per_tok", defaults.perToken);
  if (perToken > count) throw config.wrong("num_experts_per_tok", `is ${perToken}, more than there are experts, ${count}`);
  const intermediate = config.count("moe_intermediate_size", defaults.intermediate);
  const { groups, keptGroups, scaling } = defaults;
  const { source } = config;
  const given = config.with({
    n_group: source["n_group"] ?? groups,
    topk_group: source["topk_group"] ?? keptGroups,
    routed_scaling_factor: source["routed_scaling_factor"] ?? scaling,
  });
  return {
    ...PLAIN_EXPERTS,
    ...{ count, perToken, intermediate, layers: [...layers] },
    router: router(given, count, perToken),
    shared: intermediate * config.count("n_shared_experts", defaults.shared),
  };
}

/** Layers from first_k_dense_replace on. */
const afterFirst = (config: ConfigReader, layers: number, fallback: number): readonly boolean[] => {
  const first = config.source["first_k_dense_replace"] == null ? fallback : config.whole("first_k_dense_replace");
  return range(layers).map((layer) => layer >= first);
};

/** V3's, whose files say how it scores. */
export function sigmoids(config: ConfigReader, count: number, perToken: number): ExpertsSpec["router"] {
  config.only("scoring_func", "sigmoid");
  config.only("topk_method", "noaux_tc");
  return readRouter(config, count, perToken);
}

/** V2's: its weights are shares of all experts, never normalised. */
function softmax(config: ConfigReader, count: number, perToken: number): ExpertsSpec["router"] {
  config.only("scoring_func", "softmax");
  config.only("norm_topk_prob", false);
  const method = config.source["topk_method"] ?? "greedy";
  if (method !== "greedy" && method !== "group_limited_greedy")
    throw config.wrong("topk_method", `is ${JSON.stringify(method)}, expected "greedy" or "group_limited_greedy"`);
  const one = method === "greedy" ? config.with({ n_group: 1, topk_group: 1 }) : config;
  return { ...readRouter(one, count, perToken), score: "softmax", normalise: false, eps: 0 };
}

/** The layer of attention over latents, with experts and those that all tokens pass where the spec has them. */
export function deepseekLayer(spec: ModelSpec, index: number): readonly Operation[] {
  const operations = latent.layer(spec, index);
  if (!spec.experts!.layers[index]) return operations;
  const isCorrected = spec.experts!.router.score === "sigmoid";
  return withSharedExperts(operations, spec, isCorrected ? "mlp.gate.e_score_correction_bias" : null);
}

const { sharedGateUp, sharedDown, expertUp, expertDown } = glm4moe.groups;
export const deepseekGroups = { ...latent.groups, sharedGateUp, sharedDown, expertUp, expertDown } as const;

const V2 = {
  ...{ intermediate: 11008, vocab: 102400, positions: 2048 },
  ...{ queryRank: 1536, rank: 512, plain: 128, rotated: 64, value: 128 },
};
const V2_EXPERTS = { count: 64, perToken: null, intermediate: 1407, shared: 2, scaling: 1, groups: 1, keptGroups: 1 };

export const deepseekV2 = {
  ...latent,
  groups: deepseekGroups,
  layer: deepseekLayer,
  architectures: ["DeepseekV2ForCausalLM"],
  about: { models: "DeepSeek-V2, V2-Lite, Coder-V2", golden: "families/deepseek_v2", on: "2026-11-30" },
  read: (config) => {
    const sizes = readLatent(config, V2, true);
    const layers = afterFirst(config, sizes.layers, 0);
    config.only("mlp_bias", false);
    return { ...sizes, experts: readExperts(config, layers, V2_EXPERTS, softmax) };
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;

const V3 = {
  ...{ hidden: 7168, layers: 61, heads: 128, intermediate: 18432, vocab: 129280, positions: 4096 },
  ...{ queryRank: 1536, rank: 512, plain: 128, rotated: 64, value: 128 },
};
const V3_EXPERTS = { count: 256, perToken: 8, intermediate: 2048, shared: 1, scaling: 2.5, groups: 8, keptGroups: 4 };

export const deepseekV3 = {
  ...latent,
  groups: deepseekGroups,
  layer: deepseekLayer,
  architectures: ["DeepseekV3ForCausalLM"],
  about: {
    models: "DeepSeek-V3, V3.1, R1, Kimi K2, Moonlight 16B-A3B",
    golden: "families/deepseek_v3",
    on: "2026-11-30",
  },
  read: (config) => {
    const sizes = readLatent(config, V3, isInterleaved(config));
    const layers = afterFirst(config, sizes.layers, 3);
    return { ...sizes, experts: readExperts(config, layers, V3_EXPERTS, sigmoids) };
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
