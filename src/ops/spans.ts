// Root mean square norm of the first spans of a row, each by itself: of all of q and of all of k (OLMo 2).

import { F, I, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { dim, op } from "./op.ts";

const c = native({
  spans_forward: { args: [P, P, P, P, P, I, I, I, I, F], returns: "void" },
  spans_backward: { args: [P, P, P, P, P, I, I, I, I], returns: "void" },
});

/** The variant whose block holds each part of a row of W, of which the first two are A and B. */
function variant(gpu: Launcher, name: string, A: number, B: number, W: number): Variant {
  const widest = Math.max(A, B, W - A - B);
  const found = gpu.variants(name).find((kernel) => kernel.constant("BLOCK") >= widest);
  invariant(found, `${name} has no variant for parts of ${widest}`);
  return found;
}

/**
 * Of each row of x c[M, W] the columns before A and the B after them become weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps)
 * of these columns alone; the others are copied. y c[M, W], first f32[A], second f32[B], rstd f32[2, M].
 */
export const spansForward = op<{ x: Tensor; first: Tensor; second: Tensor; y: Tensor; rstd: Tensor; eps: number }>(
  "spans_forward",
  { x: "c M W", first: "f32 A", second: "f32 B", y: "c M W", rstd: "f32 2 M" },
  {
    cpu: ({ x, first, second, y, rstd, eps }) => {
      const [A, B] = [dim(first, 0), dim(second, 0)];
      c.spans_forward(x.ptr, first.ptr, second.ptr, y.ptr, rstd.ptr, dim(x, 0), dim(x, 1), A, B, eps);
    },
    cuda: ({ x, first, second, y, rstd, eps }, gpu) => {
      const [M, W, A, B] = [dim(x, 0), dim(x, 1), dim(first, 0), dim(second, 0)];
      gpu.launch(variant(gpu, "spans_forward", A, B, W), [M, 3], { x, first, second, y, rstd, M, W, A, B, eps });
    },
  },
);

/** The gradient of spansForward, in place on dy c[M, W], which it changes in the two spans. */
export const spansBackward = op<{ dy: Tensor; x: Tensor; first: Tensor; second: Tensor; rstd: Tensor }>(
  "spans_backward",
  { dy: "c M W", x: "c M W", first: "f32 A", second: "f32 B", rstd: "f32 2 M" },
  {
    cpu: ({ dy, x, first, second, rstd }) => {
      const [A, B] = [dim(first, 0), dim(second, 0)];
      c.spans_backward(dy.ptr, x.ptr, first.ptr, second.ptr, rstd.ptr, dim(x, 0), dim(x, 1), A, B);
    },
    cuda: ({ dy, x, first, second, rstd }, gpu) => {
      const [M, W, A, B] = [dim(x, 0), dim(x, 1), dim(first, 0), dim(second, 0)];
      gpu.launch(variant(gpu, "spans_backward", A, B, A + B), [M, 2], { dy, x, first, second, rstd, M, W, A, B });
    },
  },
);
