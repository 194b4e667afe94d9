// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared (projection.ts), and the vectors d and b trained.

import type { Definition } from "./definition.ts";

export const vera: Definition = {
  trained: ["lambda_d", "lambda_b"],
  rank: 256, // costs no parameters: PEFT's default
  isScaled: false,
  keys: ["projection_seed", "d_initial"],
  beginsAsPart: false,
  peft: { peft_type: "VERA" },
};
