// The low-rank products that stand apart from the frozen one (LoRA, Hu et al. 2021): s = drop(x) A^T, and the gradients.
//
// With y = x W^T + scale s B^T:  ds = scale dy B,  dB = scale dy^T s,  dA = ds^T drop(x).

import { op } from "./op.ts";

const ADAPTERS = { factors: "i64 L G 4", ranks: "i32 L G", lowAt: "i32 T" };
const DROPOUT = { rowNumber: "i32 M", dropout: "i32 L 4" };

export const loraDown = op("lora_down", { x: "c M K", s: "c E", ...ADAPTERS, ...DROPOUT });
export const loraUpGrad = op("lora_up_grad", { dy: "c M N", s: "c E", scale: "f32 L G", ds: "c E", ...ADAPTERS });
export const loraDownGrad = op("lora_down_grad", { x: "c M K", ds: "c E", ...ADAPTERS, ...DROPOUT });
