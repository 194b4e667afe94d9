// Llama (Touvron et al. 2023, Grattafiori et al. 2024), and the many models that are saved as one: SmolLM2, TinyLlama, Yi.

import type { Definition } from "./definition.ts";
import { dense, readDense, withLayerTypes } from "./dense.ts";
import { NAMES } from "./gguf.ts";

export const llama = {
  ...dense,
  architectures: ["LlamaForCausalLM"],
  gguf: {
    architecture: "llama",
    isPermuted: true,
    names: NAMES,
    biases: ["qkv", "o", "mlp"],
    ropes: ["linear", "llama3", "yarn"],
    is70B: ({ layers, heads, kvHeads }) => layers === 80 && heads !== kvHeads,
  },
  about: { models: "Llama 2, 3, 3.1 to 3.3, TinyLlama, SmolLM2, Yi", golden: "peft/llama", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, { kvHeads: null, headDim: null, intermediate: 11008, vocab: 32000, positions: 2048 });
    const attentionBias = config.flag("attention_bias", false);
    const biases = { qkvBias: attentionBias, oBias: attentionBias, mlpBias: config.flag("mlp_bias", false) };
    return withLayerTypes(config, { ...sizes, ...biases });
  },
  tokenizer: { class: null, isFixed: false },
} as const satisfies Definition;
