// What DoRA (Liu et al. 2024) adds to a linear layer with low-rank products: the norms of rows, and their lengths as factors.

import { op } from "./op.ts";

export const doraNorm = op("dora_norm", {
  weight: "w N K",
  a: "c L S K",
  b: "c L N R",
  scale: "f32 L G",
  ranks: "i32 L G",
  m: "f32 L N",
  gain: "f32 L N",
  inverse: "f32 L N",
  stale: "i32 L",
});
export const doraForward = op("dora_forward", {
  z: "c M N",
  bias: "c N",
  residual: "c M N",
  gain: "f32 L N",
  decomposed: "i32 L",
  y: "c M N",
});
export const doraBackward = op("dora_backward", {
  dy: "c M N",
  z: "c M N",
  gain: "f32 L N",
  inverse: "f32 L N",
  decomposed: "i32 L",
  dm: "f32 L N",
});
