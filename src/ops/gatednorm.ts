// Root mean square norm of each head, times the SiLU of a gate.

import { F, I, L, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

const c = native({
  gatednorm_forward: { args: [P, P, L, P, P, I, I, I, F], returns: "void" },
  gatednorm_backward: { args: [P, P, P, L, P, P, P, L, I, I, I, F], returns: "void" },
});

type Shared = { readonly x: Tensor; readonly gate: Tensor; readonly weight: Tensor; readonly eps: number };
const sizesOf = ({ x, weight }: Pick<Shared, "x" | "weight">) => {
  const D = dim(weight, 0);
  return { M: dim(x, 0), heads: dim(x, 1) / D, D };
};

/** The variant for heads of this size, or that for any, and how many programs take a head's rows. */
function rowsOf(gpu: Launcher, name: string, { M, D }: { readonly M: number; readonly D: number }): [Variant, number] {
  const fits = (kernel: Variant) =>
    kernel.constant("EXACT") === 1 ? D === kernel.constant("BLOCK") : D <= kernel.constant("BLOCK");
  const kernel = gpu.variants(name).find(fits);
  invariant(kernel, `heads of ${D} features are too large for ${name}`);
  return [kernel, cdiv(M, kernel.constant("BM"))];
}

/**
 * y = weight x rstd silu(gate), rstd = 1 / sqrt(mean(x^2) + eps) of each head of D: x, y c[M, W]; gate c[M, W], strided; weight
 * f32[D].
 */
export const gatednormForward = op<Shared & { y: Tensor }>(
  "gatednorm_forward",
  { x: "c M W", gate: "c M W", weight: "f32 D", y: "c M W" },
  {
    cpu: ({ x, gate, weight, y, eps }) => {
      const { M, heads, D } = sizesOf({ x, weight });
      c.gatednorm_forward(x.ptr, gate.ptr, strideOf(gate), weight.ptr, y.ptr, M, heads, D, eps);
    },
    cuda: ({ x, gate, weight, y, eps }, gpu) => {
      const { M, heads, D } = sizesOf({ x, weight });
      const [kernel, tiles] = rowsOf(gpu, "gatednorm_forward", { M, D });
      const args = { x, gate, weight, y, M, heads, D, gate_stride: strideOf(gate), eps };
      gpu.launch(kernel, [tiles, heads], args);
    },
  },
);

/** dx and dgate c[M, W] from dy; dgate strided; dx may be dy. */
export const gatednormBackward = op<Shared & { dy: Tensor; dx: Tensor; dgate: Tensor }>(
  "gatednorm_backward",
  { dy: "c M W", x: "c M W", gate: "c M W", weight: "f32 D", dx: "c M W", dgate: "c M W" },
  {
    cpu: ({ dy, x, gate, weight, dx, dgate, eps }) => {
      const { M, heads, D } = sizesOf({ x, weight });
      const from = [dy.ptr, x.ptr, gate.ptr, strideOf(gate), weight.ptr] as const;
      c.gatednorm_backward(...from, dx.ptr, dgate.ptr, strideOf(dgate), M, heads, D, eps);
    },
    cuda: ({ dy, x, gate, weight, dx, dgate, eps }, gpu) => {
      const { M, heads, D } = sizesOf({ x, weight });
      const strides = { gate_stride: strideOf(gate), dgate_stride: strideOf(dgate) };
      const [kernel, tiles] = rowsOf(gpu, "gatednorm_backward", { M, D });
      const args = { dy, x, gate, weight, dx, dgate, M, heads, D, ...strides, eps };
      gpu.launch(kernel, [tiles, heads], args);
    },
  },
);
