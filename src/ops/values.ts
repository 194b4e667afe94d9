// Values of attention that are normalised without a weight, and keys and values that layers share (Gemma 4).

import { F, I, native, P } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import type { Heads } from "./attention.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  value_norm_forward: { args: [P, P, I, I, I, I, I, I, F], returns: "void" },
  value_norm_backward: { args: [P, P, P, I, I, I, I, I, I, F], returns: "void" },
  columns_copy: { args: [P, I, P, I, I, I, I], returns: "void" },
});

type Shared = Heads & { readonly x: Tensor; readonly isKey: boolean; readonly eps: number };

const known = ({ heads, kvHeads, headDim, isKey }: Shared) => ({
  W: (heads + 2 * kvHeads) * headDim,
  X: (heads + (isKey ? 1 : 2) * kvHeads) * headDim,
});
/** The head of x that the first value is made of. */
const sourceOf = ({ heads, kvHeads, isKey }: Shared): number => heads + (isKey ? 0 : kvHeads);
const headsIn = ({ heads, kvHeads, isKey }: Shared): number => heads + (isKey ? 1 : 2) * kvHeads;

function variant(gpu: Launcher, name: string, D: number): Variant {
  const found = gpu.variants(name).find((kernel) => kernel.constant("HEAD_DIM") >= D);
  invariant(found, `${name} has no variant for heads of ${D}`);
  return found;
}

/**
 * y c[M, (Q + 2C) D] = q, k and v of x c[M, (Q + 2C) D], v divided by the root of its mean square, head by head; with `isKey` x
 * is c[M, (Q + C) D], and v is its k.
 */
export const valueNormForward = op<Shared & { y: Tensor }>(
  "value_norm_forward",
  { x: "c M X", y: "c M W" },
  {
    known,
    cpu: (of) => {
      const { x, y, heads, kvHeads, headDim, eps } = of;
      c.value_norm_forward(x.ptr, y.ptr, dim(x, 0), headsIn(of), heads, kvHeads, sourceOf(of), headDim, eps);
    },
    cuda: (of, gpu) => {
      const { x, y, heads, kvHeads, headDim: D, eps } = of;
      gpu.launch(variant(gpu, "value_norm_forward", D), [dim(x, 0), heads + 2 * kvHeads], {
        ...{ x, y, in_heads: headsIn(of), heads, kv_heads: kvHeads, source: sourceOf(of), D, eps },
      });
    },
  },
);

/** dx of value_norm_forward, shaped as x, from dy c[M, (Q + 2C) D]. */
export const valueNormBackward = op<Shared & { dy: Tensor; dx: Tensor }>(
  "value_norm_backward",
  { dy: "c M W", x: "c M X", dx: "c M X" },
  {
    known,
    cpu: (of) => {
      const { dy, x, dx, heads, kvHeads, headDim, eps } = of;
      c.value_norm_backward(dy.ptr, x.ptr, dx.ptr, dim(x, 0), headsIn(of), heads, kvHeads, sourceOf(of), headDim, eps);
    },
    cuda: (of, gpu) => {
      const { dy, x, dx, heads, kvHeads, headDim: D, eps } = of;
      gpu.launch(variant(gpu, "value_norm_backward", D), [dim(x, 0), headsIn(of)], {
        ...{ dy, x, dx, in_heads: headsIn(of), heads, kv_heads: kvHeads, source: sourceOf(of), D, eps },
      });
    },
  },
);

const between = (rows: Tensor): number => rows.stride ?? dim(rows, 1);

/** to = from, or to += from: [M, W] of c or f32, rows strided. */
export const copyColumns = op<{ from: Tensor; to: Tensor; adds: boolean }>(
  "columns_copy",
  {},
  {
    cpu: ({ from, to, adds }) =>
      c.columns_copy(from.ptr, between(from), to.ptr, between(to), dim(to, 0), dim(to, 1), adds ? 1 : 0),
    cuda: ({ from, to, adds }, gpu) => {
      const is32 = (t: Tensor) => (gpu.compute !== "f32" && t.dtype === "f32" ? 1 : 0);
      const kernel = gpu.kernel("columns_copy", { ADDS: adds ? 1 : 0, FROM32: is32(from), TO32: is32(to) });
      const [M, W] = [dim(to, 0), dim(to, 1)];
      gpu.launch(kernel, [M, cdiv(W, kernel.constant("BLOCK"))], {
        ...{ from_rows: from, to_rows: to, W, from_stride: between(from), to_stride: between(to) },
      });
    },
  },
);
