// Means of rows, and their gradient.

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  pool_forward: { args: [P, P, P, I, I], returns: "void" },
  pool_backward: { args: [P, P, P, I, I], returns: "void" },
});

/**
 * y[p] = the mean of rows bounds[p, 0] .. bounds[p, 1] (at least one) of x: x c[T, H], bounds i32[P, 2], y c[P, H]. In their
 * order.
 */
export const poolForward = op<{ x: Tensor; bounds: Tensor; y: Tensor }>(
  "pool_forward",
  { x: "c T H", bounds: "i32 P 2", y: "c P H" },
  {
    cpu: ({ x, bounds, y }) => c.pool_forward(x.ptr, bounds.ptr, y.ptr, dim(y, 0), dim(y, 1)),
    cuda: ({ x, bounds, y }, gpu) => {
      const kernel = gpu.kernel("pool_forward");
      const [pools, H] = [dim(y, 0), dim(y, 1)];
      gpu.launch(kernel, [pools, cdiv(H, kernel.constant("BLOCK"))], { x, bounds, y, H });
    },
  },
);

/** dx[t] = dy[p] / rows of p, for the p whose row t is: dy c[P, H], dx c[T, H], every row of which is one p's. */
export const poolBackward = op<{ dy: Tensor; bounds: Tensor; dx: Tensor }>(
  "pool_backward",
  { dy: "c P H", bounds: "i32 P 2", dx: "c T H" },
  {
    cpu: ({ dy, bounds, dx }) => c.pool_backward(dy.ptr, bounds.ptr, dx.ptr, dim(dy, 0), dim(dy, 1)),
    cuda: ({ dy, bounds, dx }, gpu) => {
      const kernel = gpu.kernel("pool_backward");
      const [pools, H] = [dim(dy, 0), dim(dy, 1)];
      gpu.launch(kernel, [pools, cdiv(H, kernel.constant("BLOCK"))], { dy, bounds, dx, H });
    },
  },
);
