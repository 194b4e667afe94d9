// The square of what is above 0 (So et al. 2021): Nemotron-H's activation.

import { L, native, P } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  squaredrelu_forward: { args: [P, P, L], returns: "void" },
  squaredrelu_backward: { args: [P, P, P, L], returns: "void" },
});

/** y = max(x, 0)^2: x, y c[M, I]. */
export const squaredReluForward = op<{ x: Tensor; y: Tensor }>(
  "squaredrelu_forward",
  { x: "c M I", y: "c M I" },
  {
    cpu: ({ x, y }) => c.squaredrelu_forward(x.ptr, y.ptr, sizeOf(x.shape)),
    cuda: ({ x, y }, gpu) => {
      const kernel = gpu.kernel("squaredrelu_forward");
      gpu.launch(kernel, [dim(x, 0), cdiv(dim(x, 1), kernel.constant("BLOCK"))], { x, y, I: dim(x, 1) });
    },
  },
);

/** dx c[M, I] from dy; dx may be x. */
export const squaredReluBackward = op<{ dy: Tensor; x: Tensor; dx: Tensor }>(
  "squaredrelu_backward",
  { dy: "c M I", x: "c M I", dx: "c M I" },
  {
    cpu: ({ dy, x, dx }) => c.squaredrelu_backward(dy.ptr, x.ptr, dx.ptr, sizeOf(x.shape)),
    cuda: ({ dy, x, dx }, gpu) => {
      const kernel = gpu.kernel("squaredrelu_backward");
      gpu.launch(kernel, [dim(x, 0), cdiv(dim(x, 1), kernel.constant("BLOCK"))], { dy, x, dx, I: dim(x, 1) });
    },
  },
);
