// DoRA (Liu et al. 2024): the rows of W + scale B A get lengths of their own, M, which are trained, too, and begin as those of W.

import { define } from "./definition.ts";
import { lora } from "./lora.ts";

export const dora = define({
  title: "DoRA",
  tensors: { ...lora.tensors, M: { axes: "out", initial: () => 0 } }, // the stage makes them the lengths of W's rows
  keepsProduct: true,
  rank: 16,
  keys: ["alpha", "rank_pattern", "alpha_pattern", "rslora", "init"],
  beginsAsPart: false,
  peft: { peft_type: "LORA", use_dora: true },
});
