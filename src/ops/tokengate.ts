// Rows of a value times the sigmoid of a number of each token: the gate of an expert that all tokens pass.

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { dim, op } from "./op.ts";

const c = native({
  tokengate_forward: { args: [P, P, P, P, P, I, I], returns: "void" },
  tokengate_backward: { args: [P, P, P, P, P, P, I, I], returns: "void" },
});

/** y[m] = residual[m] + sigmoid(gate[m] . weight) x[m]: x, gate, residual, y c[M, H]; weight f32[1, H]. */
export const tokengateForward = op<{ x: Tensor; gate: Tensor; weight: Tensor; residual: Tensor; y: Tensor }>(
  "tokengate_forward",
  { x: "c M H", gate: "c M H", weight: "f32 1 H", residual: "c M H", y: "c M H" },
  {
    cpu: ({ x, gate, weight, residual, y }) =>
      c.tokengate_forward(x.ptr, gate.ptr, weight.ptr, residual.ptr, y.ptr, dim(x, 0), dim(x, 1)),
    cuda: ({ x, gate, weight, residual, y }, gpu) =>
      gpu.launch(gpu.kernel("tokengate_forward"), [dim(x, 0)], { x, gate, weight, residual, y, H: dim(x, 1) }),
  },
);

/** dx from dy, and the gradient of `gate` added to dgate, all c[M, H]; dx may be dy. */
export const tokengateBackward = op<{ dy: Tensor; x: Tensor; gate: Tensor; weight: Tensor; dx: Tensor; dgate: Tensor }>(
  "tokengate_backward",
  { dy: "c M H", x: "c M H", gate: "c M H", weight: "f32 1 H", dx: "c M H", dgate: "c M H" },
  {
    cpu: ({ dy, x, gate, weight, dx, dgate }) =>
      c.tokengate_backward(dy.ptr, x.ptr, gate.ptr, weight.ptr, dx.ptr, dgate.ptr, dim(x, 0), dim(x, 1)),
    cuda: ({ dy, x, gate, weight, dx, dgate }, gpu) =>
      gpu.launch(gpu.kernel("tokengate_backward"), [dim(x, 0)], { dy, x, gate, weight, dx, dgate, H: dim(x, 1) }),
  },
);
