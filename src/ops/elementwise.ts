// Multiples of values, element by element.

import { F, L, native, P } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, op } from "./op.ts";

const c = native({
  multiply: { args: [P, F, L], returns: "void" },
});

/** x *= factor: x c[M, H]. */
export const multiply = op<{ x: Tensor; factor: number }>(
  "multiply",
  { x: "c M H" },
  {
    cpu: ({ x, factor }) => c.multiply(x.ptr, factor, sizeOf(x.shape)),
    cuda: ({ x, factor }, gpu) => {
      const [kernel, size] = [gpu.kernel("multiply"), sizeOf(x.shape)];
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { x, factor, size });
    },
  },
);
