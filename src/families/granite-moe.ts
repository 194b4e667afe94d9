// Granite 3's mixtures of experts (IBM 2024): Granite's layer with experts for the MLP.

import type { Definition } from "./definition.ts";
import { dense, readDense, sameInAll } from "./dense.ts";
import { withScalars } from "./granite.ts";
import { mixed, PLAIN_EXPERTS, readCounts } from "./moe.ts";

const DEFAULTS = { kvHeads: null, headDim: null, intermediate: 11008, vocab: 32000, positions: 2048 };

export const graniteMoe = {
  ...dense,
  isScaleExact: true,
  groups: {
    qkv: dense.groups.qkv,
    o: dense.groups.o,
    expertInput: ["block_sparse_moe.experts.gate_up_proj"],
    expertOutput: ["block_sparse_moe.experts.down_proj"],
  },
  architectures: ["GraniteMoeForCausalLM"],
  about: { models: "Granite 3.0 and 3.1, the mixtures of experts", golden: "families/granitemoe", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, DEFAULTS);
    const attentionBias = config.flag("attention_bias", false);
    return {
      ...withScalars(config, sizes),
      ...{ qkvBias: attentionBias, oBias: attentionBias },
      experts: {
        ...PLAIN_EXPERTS,
        ...readCounts(config, { count: 8, perToken: 2 }),
        intermediate: sizes.intermediate,
        layers: sameInAll(sizes.layers, true),
        files: "rows",
      },
    };
  },
  layer: (spec, index) => {
    const all = { path: "block_sparse_moe", files: spec.experts!.files, bias: false } as const;
    return mixed(dense.layer(spec, index), spec, {
      routerPath: "block_sparse_moe.router.layer",
      up: { ...all, group: "expertInput", linears: ["input_linear.weight"] },
      down: { ...all, group: "expertOutput", linears: ["output_linear.weight"] },
    });
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
