// A value gated by the sigmoid of another, element by element.

import { L, native, P } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, op } from "./op.ts";

const c = native({
  gate_forward: { args: [P, P, P, L], returns: "void" },
  gate_backward: { args: [P, P, P, P, P, L], returns: "void" },
});

/** y = x sigmoid(gate): x, gate, y c[M, W]. */
export const gateForward = op<{ x: Tensor; gate: Tensor; y: Tensor }>(
  "gate_forward",
  { x: "c M W", gate: "c M W", y: "c M W" },
  {
    cpu: ({ x, gate, y }) => c.gate_forward(x.ptr, gate.ptr, y.ptr, sizeOf(y.shape)),
    cuda: ({ x, gate, y }, gpu) => {
      const [kernel, size] = [gpu.kernel("gate_forward"), sizeOf(y.shape)];
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { x, gate, y, size });
    },
  },
);

/** dx and dgate from dy, all c[M, W]; dx may be dy, and dgate may be gate. */
export const gateBackward = op<{ dy: Tensor; x: Tensor; gate: Tensor; dx: Tensor; dgate: Tensor }>(
  "gate_backward",
  { dy: "c M W", x: "c M W", gate: "c M W", dx: "c M W", dgate: "c M W" },
  {
    cpu: ({ dy, x, gate, dx, dgate }) => c.gate_backward(dy.ptr, x.ptr, gate.ptr, dx.ptr, dgate.ptr, sizeOf(dy.shape)),
    cuda: ({ dy, x, gate, dx, dgate }, gpu) => {
      const [kernel, size] = [gpu.kernel("gate_backward"), sizeOf(dy.shape)];
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { dy, x, gate, dx, dgate, size });
    },
  },
);
