// Qwen 3 (Yang et al. 2025), the mixtures of experts: the dense models' attention, and in most layers experts for the MLP.

import { range } from "../base/shape.ts";
import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, readDense, readWindow, sameInAll, withLayerTypes } from "./dense.ts";
import { mixed, NORMALISED, PLAIN_EXPERTS, readCounts } from "./moe.ts";

const DEFAULTS = { hidden: 2048, layers: 24, kvHeads: 4, headDim: null, intermediate: 6144, vocab: 151936, positions: 32768 };

type Counts = { readonly count: number; readonly perToken: number };

/** The experts of a config; `normalise`: whether the weights of a token are divided by their sum. */
export function readMixture(config: ConfigReader, layers: number, fallback: Counts, intermediate: number, normalise: boolean) {
  return {
    ...PLAIN_EXPERTS,
    ...readCounts(config, fallback),
    intermediate: config.count("moe_intermediate_size", intermediate),
    router: { ...NORMALISED, normalise },
    layers: sparseLayers(config, layers),
  };
}

/** Layers with experts: every `decoder_sparse_step`-th, but those of `mlp_only_layers`. */
function sparseLayers(config: ConfigReader, layers: number): boolean[] {
  const dense = config.source["mlp_only_layers"] ?? [];
  if (!Array.isArray(dense) || dense.some((layer) => typeof layer !== "number"))
    throw config.wrong("mlp_only_layers", `is ${JSON.stringify(dense)}, expected a list of layers`);
  const step = config.count("decoder_sparse_step", 1);
  return range(layers).map((layer) => !dense.includes(layer) && (layer + 1) % step === 0);
}

const COUNTS = { count: 128, perToken: 8 };

export const qwen3moe = {
  ...dense,
  groups: {
    ...dense.groups,
    expertUp: ["mlp.experts.gate_proj", "mlp.experts.up_proj"],
    expertDown: ["mlp.experts.down_proj"],
  },
  architectures: ["Qwen3MoeForCausalLM"],
  about: {
    models: "Qwen 3, the mixtures of experts (30B-A3B, Coder, 235B-A22B)",
    golden: "families/qwen3_moe",
    on: "2026-11-29",
  },
  read: (config) => {
    const sizes = readDense(config, DEFAULTS);
    const attentionBias = config.flag("attention_bias", false);
    // Unlike Qwen 2's window that of all layers.
    const window = config.flag("use_sliding_window", false) ? readWindow(config, 4096) : null;
    return {
      ...withLayerTypes(config, { ...sizes, windows: sameInAll(sizes.layers, window) }),
      ...{ qkvBias: attentionBias, oBias: attentionBias, qkNorm: true },
      experts: readMixture(config, sizes.layers, COUNTS, 768, config.flag("norm_topk_prob", false)),
    };
  },
  layer: (spec, index) => {
    const operations = dense.layer(spec, index);
    if (!spec.experts!.layers[index]) return operations;
    return mixed(operations, spec, {
      routerPath: "mlp.gate",
      up: { group: "expertUp", path: "mlp.experts", linears: ["gate_proj", "up_proj"], files: "each", bias: false },
      down: { group: "expertDown", path: "mlp.experts", linears: ["down_proj"], files: "each", bias: false },
    });
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;
