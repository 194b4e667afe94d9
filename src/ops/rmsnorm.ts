// Root mean square norm (Zhang and Sennrich 2019). The weight is frozen: only the input has a gradient.

import { F, I, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Choice, Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { dim, flag, op } from "./op.ts";

const c = native({
  rmsnorm_forward: { args: [P, P, P, P, P, I, I, F], returns: "void" },
  rmsnorm_backward: { args: [P, P, P, P, P, P, I, I], returns: "void" },
});

/** What rows are normalised with; `rstd`: what the backward pass needs of it. */
export type Normalised = {
  readonly x: Tensor;
  readonly weight: Tensor;
  readonly residual: Tensor | null;
  readonly y: Tensor;
  readonly rstd: Tensor;
  readonly eps: number;
};

export const NORMALISED = { x: "c M H", weight: "f32 H", residual: "c M H", y: "c M H", rstd: "f32 M" };

/** The variant whose block holds a row of H. */
export function normVariant(gpu: Launcher, name: string, H: number, choice: Choice = {}): Variant {
  const found = gpu.variants(name, choice).find((kernel) => kernel.constant("BLOCK") >= H);
  invariant(found, `${name} has no variant for rows of ${H}`);
  return found;
}

/**
 * y = residual + weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps): x, y c[M, H], weight f32[H], rstd f32[M]; `residual` c[M,
 * H] may be null.
 */
export const rmsnormForward = op<Normalised>("rmsnorm_forward", NORMALISED, {
  cpu: ({ x, weight, residual, y, rstd, eps }) =>
    c.rmsnorm_forward(x.ptr, weight.ptr, residual?.ptr ?? null, y.ptr, rstd.ptr, dim(x, 0), dim(x, 1), eps),
  cuda: ({ x, weight, residual, y, rstd, eps }, gpu) => {
    const [M, H] = [dim(x, 0), dim(x, 1)];
    const kernel = normVariant(gpu, "rmsnorm_forward", H, { RESIDUAL: flag(residual) });
    gpu.launch(kernel, [M], { x, weight, residual, y, rstd, H, eps });
  },
});

/** dx = residual + rstd * (w dy - xhat mean(w dy xhat)), xhat = x rstd. `residual` c[M, H] may be `dx` itself, or null. */
export const rmsnormBackward = op<{
  dy: Tensor;
  x: Tensor;
  weight: Tensor;
  rstd: Tensor;
  residual: Tensor | null;
  dx: Tensor;
}>(
  "rmsnorm_backward",
  { dy: "c M H", x: "c M H", weight: "f32 H", rstd: "f32 M", residual: "c M H", dx: "c M H" },
  {
    cpu: ({ dy, x, weight, rstd, residual, dx }) =>
      c.rmsnorm_backward(dy.ptr, x.ptr, weight.ptr, rstd.ptr, residual?.ptr ?? null, dx.ptr, dim(x, 0), dim(x, 1)),
    cuda: ({ dy, x, weight, rstd, residual, dx }, gpu) => {
      const [M, H] = [dim(x, 0), dim(x, 1)];
      const kernel = normVariant(gpu, "rmsnorm_backward", H, { RESIDUAL: flag(residual) });
      gpu.launch(kernel, [M], { dy, x, weight, rstd, residual, dx, H });
    },
  },
);
