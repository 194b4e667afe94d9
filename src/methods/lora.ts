// LoRA (Hu et al. 2021): y += scale B (A drop(x)). LoRA+ is a LoRA whose B learns at a rate of its own.

import { define } from "./definition.ts";

export const lora = define({
  title: "LoRA",
  tensors: { A: { axes: "rank in", initial: "init" }, B: { axes: "out rank", initial: "init" } },
  rank: 16,
  keys: ["alpha", "rank_pattern", "alpha_pattern", "rslora", "lora_plus_ratio", "init"],
  beginsAsPart: true,
  peft: { peft_type: "LORA", use_dora: false },
});
