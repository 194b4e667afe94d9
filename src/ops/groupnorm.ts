// Root mean square norm of groups of features, which a gate's SiLU has been multiplied by first: Mamba 2's.

import { F, I, L, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { dim, onCpuAlone, op, strideOf } from "./op.ts";

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

/** y = weight u rstd, u = x silu(gate), rstd = 1 / sqrt(mean(u^2) + eps) of each group: x, y c[M, W]; gate c[M, W], strided;
 * weight f32[W]. */
export const groupnormForward = op<Shared & { y: Tensor }>(
  "groupnorm_forward",
  { x: "c M W", gate: "c M W", weight: "f32 W", y: "c M W" },
  {
    cpu: (of) => c.groupnorm_forward(of.x.ptr, of.gate.ptr, strideOf(of.gate), of.weight.ptr, of.y.ptr, ...sizesOf(of)),
    cuda: onCpuAlone("Mamba layers"),
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
    cuda: onCpuAlone("Mamba layers"),
  },
);
