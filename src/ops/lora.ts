// The low-rank products that stand apart from the frozen one (LoRA, Hu et al. 2021): s = drop(x) A^T, and the gradients.
//
// With y = x W^T + scale s B^T:  ds = scale dy B,  dB = scale dy^T s,  dA = ds^T drop(x).

import { op } from "./op.ts";

const dropout = { rowNumber: "i32 M", dropout: "i32 L 4" };

export const loraDown = op("lora_down", { x: "c M K", a: "c L S K", s: "c M S", ranks: "i32 L G", ...dropout });
export const loraUpGrad = op("lora_up_grad", {
  dy: "c M N",
  s: "c M S",
  b: "c L N R",
  scale: "f32 L G",
  ranks: "i32 L G",
  ds: "c M S",
  db: "f32 L N R",
});
export const loraDownGrad = op("lora_down_grad", { x: "c M K", ds: "c M S", da: "f32 L S K", ranks: "i32 L G", ...dropout });
