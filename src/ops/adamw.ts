// AdamW (Loshchilov and Hutter 2019) or SGD of an adapter, with its own rate, step and clipping.

import { op } from "./op.ts";

/** Numbers of an adapter's row in the table; kernels.ts says which. */
export const ADAMW_TABLE_WIDTH = 11;

export const gradNorm = op("grad_norm", { grads: "f32 P", tensors: "i32 S 3", squares: "f32 S" });
export const adamwStep = op("adamw_step", {
  params: "f32 P",
  grads: "f32 P",
  m: "f32 P",
  v: "f32 P",
  copy: "bf16 P",
  factors: "i32 F",
  table: `f32 ${ADAMW_TABLE_WIDTH}`,
});
