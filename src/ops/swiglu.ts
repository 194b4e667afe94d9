// The gated activation of the MLP: silu(gate) * up (Shazeer 2020).

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  swiglu_forward: { args: [P, P, I, I], returns: "void" },
  swiglu_backward: { args: [P, P, P, I, I], returns: "void" },
});

/** h = silu(gate) * up: gateUp c[M, 2 I] (gate first), h c[M, I]. */
export const swigluForward = op<{ gateUp: Tensor; h: Tensor }>(
  "swiglu_forward",
  { gateUp: "c M 2I", h: "c M I" },
  {
    cpu: ({ gateUp, h }) => c.swiglu_forward(gateUp.ptr, h.ptr, dim(h, 0), dim(h, 1)),
    cuda: ({ gateUp, h }, gpu) => {
      const kernel = gpu.kernel("swiglu_forward");
      const [M, width] = [dim(h, 0), dim(h, 1)];
      gpu.launch(kernel, [M, cdiv(width, kernel.constant("BLOCK"))], { gate_up: gateUp, h, I: width });
    },
  },
);

/** dgateUp c[M, 2 I] (may be gateUp itself) from dh c[M, I]. */
export const swigluBackward = op<{ dh: Tensor; gateUp: Tensor; dgateUp: Tensor }>(
  "swiglu_backward",
  { dh: "c M I", gateUp: "c M 2I", dgateUp: "c M 2I" },
  {
    cpu: ({ dh, gateUp, dgateUp }) => c.swiglu_backward(dh.ptr, gateUp.ptr, dgateUp.ptr, dim(dh, 0), dim(dh, 1)),
    cuda: ({ dh, gateUp, dgateUp }, gpu) => {
      const kernel = gpu.kernel("swiglu_backward");
      const [M, width] = [dim(dh, 0), dim(dh, 1)];
      gpu.launch(kernel, [M, cdiv(width, kernel.constant("BLOCK"))], { dh, gate_up: gateUp, dgate_up: dgateUp, I: width });
    },
  },
);
