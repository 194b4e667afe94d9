// Gemma 3 (Gemma Team 2025), 270M to 27B; from 4B on as a part of a model that sees. Layers with a window have a rope of their
// own, and all have norms of each head of q and k.

import type { ConfigReader } from "./config.ts";
import type { Definition } from "./definition.ts";
import { slidingLayers } from "./dense.ts";
import { gemma, readCap, readGemma, slidingBut } from "./gemma.ts";
import { POST_NORMED } from "./gguf.ts";
import { type RopeDefaults, readRopesByKind } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2304, layers: 26, heads: 8, kvHeads: 4, headDim: 256, intermediate: 9216, vocab: 262208, positions: 131072 },
};

/** Of old, rope_theta was the full layers' and rope_local_base_freq the others'. */
const readRopes = (config: ConfigReader, sizes: RopeDefaults) =>
  readRopesByKind(
    config,
    { full: config.source["rope_theta"], sliding: config.source["rope_local_base_freq"] },
    { full: { ...sizes, theta: 1e6 }, sliding: { ...sizes, theta: 1e4 } },
  );

export const gemma3 = {
  ...gemma,
  architectures: ["Gemma3ForCausalLM"],
  gguf: {
    architecture: "gemma3",
    names: POST_NORMED,
    biases: ["qkv"],
    hasWindows: true,
    hasTwoBases: true,
    ropes: ["linear"],
    attentionScale: ({ layers, hidden, heads, headDim }) => 1 / Math.sqrt(layers === 62 ? hidden / heads : headDim),
    embeddingScale: ({ hidden }) => Math.sqrt(hidden),
  },
  about: { models: "Gemma 3 (270M to 27B)", golden: "gemma/gemma3", on: "2026-11-29" },
  read: (config) => {
    const layers = config.layers(DEFAULTS.layers);
    const sliding = slidingLayers(config, layers) ?? slidingBut(config.count("sliding_window_pattern", 6), layers);
    // transformers has the key, but no cap in the layers.
    if (config.source["attn_logit_softcapping"] != null)
      throw config.wrong("attn_logit_softcapping", `is ${config.source["attn_logit_softcapping"]}, expected null in Gemma 3`);
    const sizes = readGemma(config, DEFAULTS, sliding);
    return {
      ...sizes,
      ropes: [...readRopes(config, sizes)],
      layerRopes: sliding.map(Number),
      qkNorm: true,
      logitCap: readCap(config, "final_logit_softcapping", null),
    };
  },
} as const satisfies Definition;

/** As config.json calls it where it is all of a model. */
export const gemma3Text = { ...gemma3, architectures: [] } as const satisfies Definition;
