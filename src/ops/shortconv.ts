// Short gated convolution (LFM2): a causal depthwise convolution within packed sequences, with a gate before and after it.
//
// Of a row's three parts b, c and x, C features each, u = b x and p[m] = the sum over t of weight[:, t] u[m - T + 1 + t], rows
// before the sequence's first being 0; y = c p. bcx c[M, 3C]; weight f32[C, T], T at most 8; bounds as attention_forward has
// them; padding rows have y 0 and no gradient.

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  shortconv_forward: { args: [P, P, P, P, I, I, I], returns: "void" },
  shortconv_backward: { args: [P, P, P, P, P, I, I, I], returns: "void" },
  shortconv_keep: { args: [P, P, P, P, I, I, I, I], returns: "void" },
  shortconv_decode: { args: [P, P, P, P, P, I, I, I, I], returns: "void" },
});

/** y c[M, C]. */
export const shortconvForward = op<{ bcx: Tensor; weight: Tensor; bounds: Tensor; y: Tensor }>(
  "shortconv_forward",
  { bcx: "c M 3C", weight: "f32 C T", bounds: "i32 M 2", y: "c M C" },
  {
    cpu: ({ bcx, weight, bounds, y }) =>
      c.shortconv_forward(bcx.ptr, weight.ptr, bounds.ptr, y.ptr, dim(bcx, 0), dim(y, 1), dim(weight, 1)),
    cuda: ({ bcx, weight, bounds, y }, gpu) => {
      const [M, C] = [dim(y, 0), dim(y, 1)];
      const kernel = gpu.kernel("shortconv_forward", { TAPS: dim(weight, 1) });
      const grid = [cdiv(M, kernel.constant("BM")), cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { bcx, weight, bounds, y, M, C });
    },
  },
);

/** dbcx c[M, 3C] from dy c[M, C]. */
export const shortconvBackward = op<{ dy: Tensor; bcx: Tensor; weight: Tensor; bounds: Tensor; dbcx: Tensor }>(
  "shortconv_backward",
  { dy: "c M C", bcx: "c M 3C", weight: "f32 C T", bounds: "i32 M 2", dbcx: "c M 3C" },
  {
    cpu: ({ dy, bcx, weight, bounds, dbcx }) => {
      const sizes = [dim(bcx, 0), dim(dy, 1), dim(weight, 1)] as const;
      c.shortconv_backward(dy.ptr, bcx.ptr, weight.ptr, bounds.ptr, dbcx.ptr, ...sizes);
    },
    cuda: ({ dy, bcx, weight, bounds, dbcx }, gpu) => {
      const [M, C] = [dim(dy, 0), dim(dy, 1)];
      const kernel = gpu.kernel("shortconv_backward", { TAPS: dim(weight, 1) });
      const grid = [cdiv(M, kernel.constant("BM")), cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { dy, bcx, weight, bounds, dbcx, M, C });
    },
  },
);

/** The last rows of sequences that are kept: places i32[M] as cache_write has them, S sequences of `capacity` rows each. */
type Kept = { readonly places: Tensor; readonly window: Tensor; readonly capacity: number };

/**
 * window[s] = the last T - 1 rows of u, the earliest first, 0 before its first, of each sequence that ends in the pass: s =
 * places / capacity of its last row, nothing where that is below 0. window c[S, T - 1, C].
 */
export const shortconvKeep = op<Kept & { bcx: Tensor; bounds: Tensor }>(
  "shortconv_keep",
  { bcx: "c M 3C", bounds: "i32 M 2", places: "i32 M", window: "c S K C" },
  {
    cpu: ({ bcx, bounds, places, window, capacity }) => {
      const sizes = [dim(bcx, 0), dim(window, 2), dim(window, 1) + 1, capacity] as const;
      c.shortconv_keep(bcx.ptr, bounds.ptr, places.ptr, window.ptr, ...sizes);
    },
    cuda: ({ bcx, bounds, places, window, capacity }, gpu) => {
      const C = dim(window, 2);
      const kernel = gpu.kernel("shortconv_keep", { TAPS: dim(window, 1) + 1 });
      gpu.launch(kernel, [dim(bcx, 0), cdiv(C, kernel.constant("BC"))], { bcx, bounds, places, window, C, capacity });
    },
  },
);

/** A row of each sequence: y as shortconv_forward has it, from its window, which moves on by the row; 0 without a place. */
export const shortconvDecode = op<Kept & { bcx: Tensor; weight: Tensor; y: Tensor }>(
  "shortconv_decode",
  { bcx: "c M 3C", weight: "f32 C T", places: "i32 M", window: "c S K C", y: "c M C" },
  {
    cpu: ({ bcx, weight, places, window, y, capacity }) => {
      const sizes = [dim(bcx, 0), dim(y, 1), dim(weight, 1), capacity] as const;
      c.shortconv_decode(bcx.ptr, weight.ptr, places.ptr, window.ptr, y.ptr, ...sizes);
    },
    cuda: ({ bcx, weight, places, window, y, capacity }, gpu) => {
      const C = dim(y, 1);
      const kernel = gpu.kernel("shortconv_decode", { TAPS: dim(weight, 1) });
      gpu.launch(kernel, [dim(bcx, 0), cdiv(C, kernel.constant("BC"))], { bcx, weight, places, window, y, C, capacity });
    },
  },
);
