// Ministral 3 (Mistral AI 2025): Mistral's layer with YaRN, whose queries grow with the logarithm of their position.

import { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { dense, oneRope, readSizes, readWindow, sameInAll, withLayerTypes } from "./dense.ts";
import { originalPositions, readRope } from "./rope.ts";

/** What transformers takes for a config without rope_parameters. */
const ROPE = {
  rope_type: "yarn",
  rope_theta: 1e6,
  factor: 16,
  original_max_position_embeddings: 16384,
  beta_fast: 32,
  beta_slow: 1,
  mscale_all_dim: 1,
  mscale: 1,
  llama_4_scaling_beta: 0.1,
};

const DEFAULTS = { layers: 34, kvHeads: 8, headDim: 128, intermediate: 14336, vocab: 131072, positions: 262144, normEps: 1e-5 };

export const ministral3 = {
  ...dense,
  architectures: ["Ministral3ForCausalLM"],
  about: { models: "Ministral 3 (3B, 8B, 14B)", golden: "families/ministral3", on: "2026-11-29" },
  read: (given) => {
    const { source, path } = given;
    const key = source["rope_scaling"] ? "rope_scaling" : "rope_parameters";
    const table = (source[key] ?? ROPE) as Readonly<Record<string, unknown>>;
    const config = new ConfigReader({ ...source, [key]: table }, path);
    const sizes = readSizes(config, DEFAULTS);
    const rope = readRope(config, sizes);
    const inner = new ConfigReader(table, `${path}: ${key}`);
    const originalMaxPositions = originalPositions({ inner, config, maxPositions: sizes.maxPositions });
    const queryScale = { beta: inner.number("llama_4_scaling_beta", null), originalMaxPositions };
    return withLayerTypes(config, {
      ...sizes,
      ...oneRope(sizes, { ...rope, queryScale }),
      windows: sameInAll(sizes.layers, readWindow(config, null)),
    });
  },
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
