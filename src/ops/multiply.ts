// Rows times a number that lies on the device: embeddings that are scaled, layers whose output is.

import { I, native, P } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({ rows_multiply: { args: [P, P, P, I, I], returns: "void" } });

/** y = factor x: x, y c[M, H], which may be the same, factor f32[1]. */
export const multiplyRows = op<{ x: Tensor; factor: Tensor; y: Tensor }>(
  "rows_multiply",
  { x: "c M H", factor: "f32 1", y: "c M H" },
  {
    cpu: ({ x, factor, y }) => c.rows_multiply(x.ptr, factor.ptr, y.ptr, dim(x, 0), dim(x, 1)),
    cuda: ({ x, factor, y }, gpu) => {
      const kernel = gpu.kernel("rows_multiply");
      const size = sizeOf(x.shape);
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { x, factor, y, size });
    },
  },
);
