// Mistral (Jiang et al. 2023): Llama's layer with a sliding window. Mistral-Small 3.x, Magistral and Devstral have it as a
// part, without a window.

import type { Definition } from "./definition.ts";
import { dense, readDense, readWindow, sameInAll, withLayerTypes } from "./dense.ts";
import { llama } from "./llama.ts";

export const mistral = {
  ...dense,
  architectures: ["MistralForCausalLM"],
  gguf: llama.gguf,
  about: { models: "Mistral 7B, Mistral-Nemo, Mistral-Small 24B", golden: "peft/mistral", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, { kvHeads: 8, headDim: null, intermediate: 14336, vocab: 32000, positions: 4096 * 32 });
    return withLayerTypes(config, { ...sizes, windows: sameInAll(sizes.layers, readWindow(config, 4096)) });
  },
  tokenizer: { class: null, isFixed: true },
} as const satisfies Definition;

export const mistral3 = {
  ...mistral,
  architectures: [],
  about: { models: "Mistral-Small 3.1 and 3.2, Magistral, Devstral", golden: "families/mistral3", on: "2026-11-29" },
} as const satisfies Definition;
