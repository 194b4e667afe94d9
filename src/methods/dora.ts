// DoRA (Liu et al. 2024): the rows of W + scale B A get lengths of their own, M, which are trained, too, and begin as those of W.

import type { Definition } from "./definition.ts";

export const dora: Definition = {
  trained: ["A", "B", "M"],
  rank: 16,
  isScaled: true,
  keys: ["alpha", "rank_pattern", "alpha_pattern", "rslora", "init"],
  beginsAsPart: false,
  peft: { peft_type: "LORA", use_dora: true },
};
