// LFM2's mixtures of experts (Liquid AI 2025): after the first layers, whose MLPs are dense, experts that a sigmoid chooses, by
// scores to which a number for each expert is added.

import { range } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { CONVOLVED_GROUPS, convolvedLayer, lfm2, readConvolved } from "./lfm2.ts";
import { type ExpertsSpec, mixed, PLAIN_EXPERTS, readCounts } from "./moe.ts";

const DEFAULTS = {
  ...{ hidden: 2048, kvHeads: 8, headDim: null, intermediate: 7168, vocab: 65536, positions: 128000 },
  ...{ normEps: 1e-5, theta: 1e6, isTied: true },
};

function readExperts(config: ConfigReader, layers: number): ExpertsSpec {
  const first = config.source["num_dense_layers"] == null ? 2 : config.whole("num_dense_layers");
  return {
    ...PLAIN_EXPERTS,
    ...readCounts(config, { count: 32, perToken: 4 }),
    intermediate: config.count("moe_intermediate_size", 1792),
    layers: range(layers).map((layer) => layer >= first),
    router: {
      ...{ score: "sigmoid", normalise: config.flag("norm_topk_prob", true), eps: 1e-6, groups: 1, keptGroups: 1 },
      scaling: config.number("routed_scaling_factor", 1),
    },
  };
}

export const lfm2Moe = {
  ...lfm2,
  architectures: ["Lfm2MoeForCausalLM"],
  about: { models: "LFM2 8B-A1B and LFM2 24B-A2B, the mixtures of experts", golden: "families/lfm2_moe", on: "2026-11-30" },
  groups: {
    ...CONVOLVED_GROUPS,
    w13: lfm2.groups.w13,
    w2: lfm2.groups.w2,
    convolvedExpertW13: ["feed_forward.experts.w1", "feed_forward.experts.w3"],
    convolvedExpertW2: ["feed_forward.experts.w2"],
  },
  read: (config) => {
    config.only("use_expert_bias", true);
    const sizes = readConvolved(config, DEFAULTS);
    return { ...sizes, experts: readExperts(config, sizes.layers) };
  },
  layer: (spec, index) => {
    const operations = convolvedLayer(spec, index);
    if (!spec.experts!.layers[index]) return operations;
    const each = { path: "feed_forward.experts", files: spec.experts!.files, bias: false } as const;
    const paths = {
      routerPath: "feed_forward.gate",
      up: { ...each, group: "convolvedExpertW13", linears: ["w1", "w3"] },
      down: { ...each, group: "convolvedExpertW2", linears: ["w2"] },
    };
    return mixed(operations, spec, paths, { correction: "feed_forward.expert_bias" });
  },
} as const satisfies Definition;
