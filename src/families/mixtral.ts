// Mixtral (Jiang et al. 2024): Mistral's attention, and two of eight experts for the MLP.

import type { Definition } from "./definition.ts";
import { dense, readDense, readWindow, sameInAll, withLayerTypes } from "./dense.ts";
import { mixed, PLAIN_EXPERTS, readCounts } from "./moe.ts";

const DEFAULTS = {
  kvHeads: 8,
  headDim: null,
  intermediate: 14336,
  vocab: 32000,
  positions: 4096 * 32,
  normEps: 1e-5,
  theta: 1e6,
};

export const mixtral = {
  ...dense,
  groups: {
    qkv: dense.groups.qkv,
    o: dense.groups.o,
    expertW13: ["block_sparse_moe.experts.w1", "block_sparse_moe.experts.w3"],
    expertW2: ["block_sparse_moe.experts.w2"],
  },
  architectures: ["MixtralForCausalLM"],
  about: { models: "Mixtral 8x7B, 8x22B", golden: "families/mixtral", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, DEFAULTS);
    config.only("router_jitter_noise", 0);
    return {
      ...withLayerTypes(config, { ...sizes, windows: sameInAll(sizes.layers, readWindow(config, null)) }),
      experts: {
        ...readCounts(config, { count: 8, perToken: 2 }),
        intermediate: sizes.intermediate,
        layers: sameInAll(sizes.layers, true),
        ...PLAIN_EXPERTS,
      },
    };
  },
  layer: (spec, index) =>
    mixed(dense.layer(spec, index), spec, {
      routerPath: "block_sparse_moe.gate",
      up: { group: "expertW13", path: "block_sparse_moe.experts", linears: ["w1", "w3"], files: "each", bias: false },
      down: { group: "expertW2", path: "block_sparse_moe.experts", linears: ["w2"], files: "each", bias: false },
    }),
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
