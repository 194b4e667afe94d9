// LoRA (Hu et al. 2021): y += scale B (A drop(x)). LoRA+ is a LoRA whose B learns at a rate of its own.

import type { Definition } from "./definition.ts";

export const lora: Definition = {
  trained: ["A", "B"],
  rank: 16,
  isScaled: true,
  keys: ["alpha", "rank_pattern", "alpha_pattern", "rslora", "lora_plus_ratio", "init"],
  beginsAsPart: true,
  peft: { peft_type: "LORA", use_dora: false },
};
