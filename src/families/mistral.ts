// Mistral (Jiang et al. 2023): Llama's layer with a sliding window.

import type { Definition } from "./definition.ts";
import { dense, readSizes, sameWindows } from "./dense.ts";

export const mistral = {
  ...dense,
  architectures: ["MistralForCausalLM"],
  read: (config) => {
    const sizes = readSizes(config, { kvHeads: 8, headDim: null, intermediate: 14336, vocab: 32000, positions: 4096 * 32 });
    const window = config.source["sliding_window"] === null ? null : config.count("sliding_window", 4096);
    const windows = sameWindows(sizes.layers, window);
    return { ...sizes, windows, qkvBias: false, oBias: false, mlpBias: false, qkNorm: false };
  },
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;
