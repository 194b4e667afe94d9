// Qwen 3 (Yang et al. 2025), the dense models: Qwen 2's layer with RMSNorms of each head of q and k in place of the biases.

import type { Definition } from "./definition.ts";
import { dense, readDense } from "./dense.ts";
import { HEAD_NORMS, NAMES } from "./gguf.ts";
import { qwenWindows } from "./qwen2.ts";

export const qwen3 = {
  ...dense,
  architectures: ["Qwen3ForCausalLM"],
  gguf: { architecture: "qwen3", names: { ...NAMES, ...HEAD_NORMS }, biases: ["qkv"], ropes: ["linear", "yarn"] },
  about: { models: "Qwen 3, the dense models", golden: "peft/qwen3", on: "2026-11-29" },
  read: (config) => {
    const sizes = readDense(config, { kvHeads: 32, headDim: 128, intermediate: 22016, vocab: 151936, positions: 32768 });
    const attentionBias = config.flag("attention_bias", false);
    const windows = qwenWindows(config, sizes.layers);
    return { ...sizes, windows, qkvBias: attentionBias, oBias: attentionBias, qkNorm: true };
  },
  tokenizer: { class: "Qwen2Tokenizer", isFixed: false },
} as const satisfies Definition;
