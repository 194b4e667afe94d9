// Root mean square norm (Zhang and Sennrich 2019). The weight is frozen: only the input has a gradient.

import { op } from "./op.ts";

export const rmsnormForward = op("rmsnorm_forward", {
  x: "c M H",
  weight: "f32 H",
  residual: "c M H",
  y: "c M H",
  rstd: "f32 M",
});
export const rmsnormBackward = op("rmsnorm_backward", {
  dy: "c M H",
  x: "c M H",
  weight: "f32 H",
  rstd: "f32 M",
  residual: "c M H",
  dx: "c M H",
});
