// A frozen linear layer with the low-rank products of many adapters in the same kernel (BatchLoRA, arXiv 2312.02515).

import { op } from "./op.ts";

const ADAPTERS = { factors: "i64 L G 4", ranks: "i32 L G", lowAt: "i32 T" };

export const linearForward = op("linear_forward", {
  x: "c M K",
  weight: "w N K",
  bias: "c N",
  residual: "c M N",
  y: "c M N",
  s: "c E",
  scale: "f32 L G",
  ...ADAPTERS,
});
export const linearBackward = op("linear_backward", {
  dy: "c M N",
  weight: "w N K",
  dx: "c M K",
  ds: "c E",
  rowNumber: "i32 M",
  dropout: "i32 L 4",
  ...ADAPTERS,
});
