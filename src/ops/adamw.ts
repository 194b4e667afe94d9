// AdamW (Loshchilov and Hutter 2019) or SGD of all adapters in one launch, with each adapter's own rate, step and clipping.

import { op } from "./op.ts";

/** Numbers of an adapter's row in the table; kernels.ts says which. */
export const ADAMW_TABLE_WIDTH = 11;

export const gradNorm = op("grad_norm", { grads: "f32 L P", tensors: "i32 S 3", squares: "f32 L S" });
export const adamwStep = op("adamw_step", {
  params: "f32 L P",
  grads: "f32 L P",
  m: "f32 L P",
  v: "f32 L P",
  copy: "bf16 L P",
  factors: "i32 F",
  table: `f32 L ${ADAMW_TABLE_WIDTH}`,
});
