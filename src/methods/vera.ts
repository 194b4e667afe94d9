// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared (projection.ts), and the vectors d and b trained.

import { define } from "./definition.ts";

export const vera = define({
  title: "VeRA",
  tensors: {
    lambda_d: { axes: "rank", initial: ({ dInitial = 0.1 }) => dInitial },
    lambda_b: { axes: "out", initial: () => 0 },
  },
  rank: 256, // costs no parameters: PEFT's default
  keys: ["projection_seed", "d_initial"],
  beginsAsPart: false,
  peft: { peft_type: "VERA" },
});
