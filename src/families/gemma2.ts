// Gemma 2 (Gemma Team 2024): scores of attention and logits have caps, and every second layer has no window.

import type { Definition } from "./definition.ts";
import { oneRope, slidingLayers } from "./dense.ts";
import { gemma, readCap, readGemma, slidingBut } from "./gemma.ts";
import { POST_NORMED } from "./gguf.ts";
import { readRope } from "./rope.ts";

const DEFAULTS = {
  ...{ hidden: 2304, layers: 26, heads: 8, kvHeads: 4, headDim: 256, intermediate: 9216, vocab: 256000, positions: 8192 },
};

export const gemma2 = {
  ...gemma,
  architectures: ["Gemma2ForCausalLM"],
  gguf: {
    architecture: "gemma2",
    names: POST_NORMED,
    biases: ["qkv"],
    hasWindows: true,
    ropes: [],
    head: "always tied",
    attentionScale: ({ layers, hidden, heads, headDim }) => 1 / Math.sqrt(layers === 46 ? hidden / heads : headDim),
    embeddingScale: ({ hidden }) => Math.sqrt(hidden),
  },
  about: { models: "Gemma 2", golden: null, on: "2026-11-29" },
  read: (config) => {
    const layers = config.layers(DEFAULTS.layers);
    const sizes = readGemma(config, DEFAULTS, slidingLayers(config, layers) ?? slidingBut(2, layers));
    return {
      ...sizes,
      ...oneRope(sizes, readRope(config, sizes)),
      attentionCap: readCap(config, "attn_logit_softcapping", 50),
      logitCap: readCap(config, "final_logit_softcapping", 30),
    };
  },
} as const satisfies Definition;
