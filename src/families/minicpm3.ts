// MiniCPM3 (OpenBMB 2024): attention over latents with features rotated by halves, and MiniCPM's scalars.
//
// A factor r of both residual branches is taken out of the stream, as in granite.ts.

import type { Definition } from "./definition.ts";
import { latent, readLatent } from "./latent.ts";

const DEFAULTS = {
  ...{ hidden: 2560, layers: 62, heads: 40, intermediate: 6400, vocab: 73448, positions: 32768, normEps: 1e-5, isTied: true },
  ...{ queryRank: 768, rank: 256, plain: 64, rotated: 32, value: null },
};

export const miniCpm3 = {
  ...latent,
  architectures: ["MiniCPM3ForCausalLM"],
  about: { models: "MiniCPM3 4B", golden: "families/minicpm3", on: "2026-11-30" },
  read: (config) => {
    const sizes = readLatent(config, DEFAULTS, false);
    const { source } = config;
    const depth = source["scale_depth"] === null ? Math.sqrt(sizes.layers) : config.number("scale_depth", 1.4);
    const base = source["dim_model_base"] === null ? sizes.hidden : config.number("dim_model_base", 256);
    const residual = depth / Math.sqrt(sizes.layers);
    return {
      ...sizes,
      mlpBias: config.flag("mlp_bias", false),
      normEps: sizes.normEps / residual ** 2,
      embeddingScale: config.number("scale_emb", 12) / residual,
      logitScale: base / sizes.hidden,
    };
  },
  isScaleExact: true,
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
