// Sums of values, element by element.

import { L, native, P } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, op } from "./op.ts";

const c = native({ add_to: { args: [P, P, L], returns: "void" } });

/** y += x: x, y c[M, H], whose elements are a multiple of 8 on GPUs. */
export const addTo = op<{ x: Tensor; y: Tensor }>(
  "add_to",
  { x: "c M H", y: "c M H" },
  {
    cpu: ({ x, y }) => c.add_to(x.ptr, y.ptr, sizeOf(y.shape)),
    cuda: ({ x, y }, gpu) => {
      const [kernel, size] = [gpu.kernel("add_to"), sizeOf(y.shape)];
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { x, y, size });
    },
  },
);
