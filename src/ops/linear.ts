// A frozen linear layer with the low-rank products of many adapters in the same kernel (BatchLoRA, arXiv 2312.02515).

import { op } from "./op.ts";

export const linearForward = op("linear_forward", {
  x: "c M K",
  weight: "w N K",
  bias: "c N",
  residual: "c M N",
  y: "c M N",
  s: "c M S",
  b: "c L N R",
  scale: "f32 L G",
  ranks: "i32 L G",
});
export const linearBackward = op("linear_backward", {
  dy: "c M N",
  weight: "w N K",
  dx: "c M K",
  ds: "c M S",
  a: "c L S K",
  ranks: "i32 L G",
  rowNumber: "i32 M",
  dropout: "i32 L 4",
});
