// Cross-entropy over the vocabulary, a chunk of rows at a time: logits of all rows never exist together.

import { F, I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { dim, op } from "./op.ts";

const c = native({ xent: { args: [P, P, P, P, P, I, I, I, I, F, F], returns: "void" } });

/**
 * Cross-entropy of each row of z = scale * logits, or cap tanh(scale * logits / cap) where there is a cap, with targets i32[T]:
 * loss f32[T] = -log p(target); hit i32[T] = 1 where the target is the (first) largest. Of logits c[T, V] the first `classes`
 * columns count. With grad = 1 the logits become their gradient, weights[t] * (p - onehot) dz / dlogit, weights f32[T], and
 * zero from column `classes` on; with grad = 0 they may become z.
 */
export const xent = op<{
  logits: Tensor;
  classes: number;
  scale: number;
  cap: number | null;
  targets: Tensor;
  weights: Tensor;
  loss: Tensor;
  isCorrect: Tensor;
  grad: 0 | 1;
}>(
  "xent",
  { logits: "c T V", targets: "i32 T", weights: "f32 T", loss: "f32 T", isCorrect: "i32 T" },
  {
    cpu: ({ logits, classes, scale, cap, targets, weights, loss, isCorrect, grad }) => {
      const [T, V] = [dim(logits, 0), dim(logits, 1)];
      c.xent(logits.ptr, targets.ptr, weights.ptr, loss.ptr, isCorrect.ptr, T, V, classes, grad, scale, cap ?? 0);
    },
    cuda: ({ logits, classes, scale, cap, targets, weights, loss, isCorrect, grad }, gpu) => {
      const [T, V] = [dim(logits, 0), dim(logits, 1)];
      const kernel = gpu.kernel("xent", { SHAPED: cap !== null || scale !== 1 ? 1 : 0 });
      const args = { logits, targets, weights, loss, hit: isCorrect, V, classes, grad, scale, cap: cap ?? 0 };
      gpu.launch(kernel, [T], args);
    },
  },
);
