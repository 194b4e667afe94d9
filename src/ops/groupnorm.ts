// Root mean square norm of groups of features, which a gate's SiLU has been multiplied by first: Mamba 2's.

import { F, I, L, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { dim, op, strideOf } from "./op.ts";

const c = native({
  groupnorm_forward: { args: [P, P, L, P, P, I, I, I, F], returns: "void" },
  groupnorm_backward: { args: [P, P, P, L, P, P, P, L, I, I, I, F], returns: "void" },
});

/** `groups` of equal size. */
type Shared = {
  readonly x: Tensor;
  readonly gate: Tensor;
  readonly weight: Tensor;
  readonly groups: number;
  readonly eps: number;
};
const sizesOf = ({ x, groups, eps }: Shared) => [dim(x, 0), groups, dim(x, 1) / groups, eps] as const;

/** The variant whose block holds a group of D. */
function variant(gpu: Launcher, name: string, D: number): Variant {
  const found = gpu.variants(name).find((kernel) => kernel.constant("BLOCK") >= D);
  invariant(found, `${name} has no variant for groups of ${D}`);
  return found;
}

/** y = weight u rstd, u = x silu(gate), rstd = 1 / sqrt(mean(u^2) + eps) of each group: x, y c[M, W]; gate c[M, W], strided;
 * weight f32[W]. */
export const groupnormForward = op<Shared & { y: Tensor }>(
  "groupnorm_forward",
  { x: "c M W", gate: "c M W", weight: "f32 W", y: "c M W" },
  {
    cpu: (of) => c.groupnorm_forward(of.x.ptr, of.gate.ptr, strideOf(of.gate), of.weight.ptr, of.y.ptr, ...sizesOf(of)),
    cuda: ({ x, gate, weight, y, groups, eps }, gpu) => {
      const D = dim(x, 1) / groups;
      const args = { x, gate, weight, y, groups, D, gate_stride: strideOf(gate), eps };
      gpu.launch(variant(gpu, "groupnorm_forward", D), [dim(x, 0), groups], args);
    },
  },
);

/** dx and dgate c[M, W] from dy; dgate strided; dx may be dy. */
export const groupnormBackward = op<Shared & { dy: Tensor; dx: Tensor; dgate: Tensor }>(
  "groupnorm_backward",
  { dy: "c M W", x: "c M W", gate: "c M W", weight: "f32 W", dx: "c M W", dgate: "c M W" },
  {
    cpu: (of) => {
      const { dy, x, gate, weight, dx, dgate } = of;
      const from = [dy.ptr, x.ptr, gate.ptr, strideOf(gate), weight.ptr] as const;
      c.groupnorm_backward(...from, dx.ptr, dgate.ptr, strideOf(dgate), ...sizesOf(of));
    },
    cuda: ({ dy, x, gate, weight, dx, dgate, groups, eps }, gpu) => {
      const D = dim(x, 1) / groups;
      const strides = { gate_stride: strideOf(gate), dgate_stride: strideOf(dgate) };
      const args = { dy, x, gate, weight, dx, dgate, groups, D, ...strides, eps };
      gpu.launch(variant(gpu, "groupnorm_backward", D), [dim(x, 0), groups], args);
    },
  },
);
