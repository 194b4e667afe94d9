// Cross-entropy over the vocabulary, a chunk of rows at a time: logits of all rows never exist together.

import { F, I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { dim, op } from "./op.ts";

const c = native({ xent: { args: [P, P, P, P, P, P, I, I, I, I, F, F], returns: "void" } });

/**
 * Cross-entropy of each row of logits c[T, V], of which the first `classes` columns count, with targets i32[T]: loss f32[T] =
 * -log p(target); hit i32[T] = 1 where the target is the (first) largest logit. p is of s = scale z of what `logits` holds, or
 * of cap tanh(s / cap) with a cap above 0, times sharpness f32[T], a row's inverse temperature. With grad = 1 the logits become
 * the gradient of weights[t] * loss[t], weights f32[T], and zero from column `classes` on.
 */
export const xent = op<{
  logits: Tensor;
  classes: number;
  targets: Tensor;
  weights: Tensor;
  sharpness: Tensor;
  loss: Tensor;
  isCorrect: Tensor;
  grad: 0 | 1;
  scale: number;
  cap: number;
}>(
  "xent",
  { logits: "c T V", targets: "i32 T", weights: "f32 T", sharpness: "f32 T", loss: "f32 T", isCorrect: "i32 T" },
  {
    cpu: ({ logits, classes, targets, weights, sharpness, loss, isCorrect, grad, scale, cap }) => {
      const [T, V] = [dim(logits, 0), dim(logits, 1)];
      const of = [logits.ptr, targets.ptr, weights.ptr, sharpness.ptr, loss.ptr, isCorrect.ptr] as const;
      c.xent(...of, T, V, classes, grad, scale, cap);
    },
    cuda: ({ logits, classes, targets, weights, sharpness, loss, isCorrect, grad, scale, cap }, gpu) => {
      const [T, V] = [dim(logits, 0), dim(logits, 1)];
      const kernel = gpu.kernel("xent", { SHAPED: scale !== 1 || cap > 0 ? 1 : 0 });
      gpu.launch(kernel, [T], { logits, targets, weights, sharpness, loss, hit: isCorrect, V, classes, grad, scale, cap });
    },
  },
);
