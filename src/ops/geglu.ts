// The gated activation of Gemma's MLP: gelu(gate) * up, with gelu's tanh approximation. Gate and up may be columns of wider
// rows.

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  geglu_forward: { args: [P, I, P, I, P, I, I], returns: "void" },
  geglu_backward: { args: [P, P, I, P, I, P, I, P, I, I, I], returns: "void" },
});

/** Elements from a row to the next. */
const between = (rows: Tensor): number => rows.stride ?? dim(rows, 1);

/** h = gelu(gate) * up: gate, up c[M, I], rows strided, h c[M, I]. */
export const gegluForward = op<{ gate: Tensor; up: Tensor; h: Tensor }>(
  "geglu_forward",
  { gate: "c M I", up: "c M I", h: "c M I" },
  {
    cpu: ({ gate, up, h }) => c.geglu_forward(gate.ptr, between(gate), up.ptr, between(up), h.ptr, dim(h, 0), dim(h, 1)),
    cuda: ({ gate, up, h }, gpu) => {
      const kernel = gpu.kernel("geglu_forward");
      const [M, width] = [dim(h, 0), dim(h, 1)];
      gpu.launch(kernel, [M, cdiv(width, kernel.constant("BLOCK"))], {
        ...{ gate, up, h, I: width, gate_stride: between(gate), up_stride: between(up) },
      });
    },
  },
);

/** dgate, dup c[M, I], rows strided (may be gate and up themselves), from dh c[M, I]; no dup where it is null. */
export const gegluBackward = op<{ dh: Tensor; gate: Tensor; up: Tensor; dgate: Tensor; dup: Tensor | null }>(
  "geglu_backward",
  { dh: "c M I", gate: "c M I", up: "c M I", dgate: "c M I", dup: "c M I" },
  {
    cpu: ({ dh, gate, up, dgate, dup }) =>
      c.geglu_backward(
        ...([dh.ptr, gate.ptr, between(gate), up.ptr, between(up), dgate.ptr, between(dgate)] as const),
        ...([dup?.ptr ?? null, dup ? between(dup) : 0, dim(dh, 0), dim(dh, 1)] as const),
      ),
    cuda: ({ dh, gate, up, dgate, dup }, gpu) => {
      const kernel = gpu.kernel("geglu_backward", { UP: flag(dup) });
      const [M, width] = [dim(dh, 0), dim(dh, 1)];
      gpu.launch(kernel, [M, cdiv(width, kernel.constant("BLOCK"))], {
        ...{ dh, gate, up, dgate, dup, I: width, gate_stride: between(gate), up_stride: between(up) },
        ...{ dgate_stride: between(dgate), dup_stride: dup ? between(dup) : 0 },
      });
    },
  },
);
