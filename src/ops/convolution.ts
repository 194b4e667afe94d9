// Causal depthwise convolution within packed sequences, then SiLU: what mixes the queries, keys and values of linear attention,
// with a bias in Mamba 2.

import { I, L, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";

const c = native({
  convolution_forward: { args: [P, L, P, P, P, P, I, I, I], returns: "void" },
  convolution_backward: { args: [P, P, L, P, P, P, P, I, I, I], returns: "void" },
  convolution_keep: { args: [P, L, P, P, P, I, I, I, I], returns: "void" },
  convolution_decode: { args: [P, L, P, P, P, P, P, I, I, I, I], returns: "void" },
});

/** `bias` f32[C] is that of the sums; null for none. */
type Weights = { readonly weight: Tensor; readonly bias: Tensor | null };
const weightsOf = ({ weight, bias }: Weights) => [weight.ptr, bias?.ptr ?? null] as const;
/** The same for GPUs. */
const weightsFor = ({ weight, bias }: Weights) => ({ weight, bias, biased: flag(bias) });

/**
 * y[m] = silu(sum over t of weight[:, t] x[m - T + 1 + t]), rows before the sequence's first being 0: x c[M, C], strided;
 * weight f32[C, T], T at most 8; bounds as attention_forward has them (padding rows: y is 0); y c[M, C].
 */
export const convolutionForward = op<Weights & { x: Tensor; bounds: Tensor; y: Tensor }>(
  "convolution_forward",
  { x: "c M C", weight: "f32 C T", bias: "f32 C", bounds: "i32 M 2", y: "c M C" },
  {
    cpu: ({ x, weight, bias, bounds, y }) => {
      const sizes = [dim(x, 0), dim(x, 1), dim(weight, 1)] as const;
      c.convolution_forward(x.ptr, strideOf(x), ...weightsOf({ weight, bias }), bounds.ptr, y.ptr, ...sizes);
    },
    cuda: ({ x, weight, bias, bounds, y }, gpu) => {
      const [M, C] = [dim(x, 0), dim(x, 1)];
      const kernel = gpu.kernel("convolution_forward", { TAPS: dim(weight, 1) });
      const grid = [cdiv(M, kernel.constant("BM")), cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { ...weightsFor({ weight, bias }), x, bounds, y, M, C, stride: strideOf(x) });
    },
  },
);

/** dx c[M, C], strided as x, from dy c[M, C]; 0 in padding rows. */
export const convolutionBackward = op<Weights & { dy: Tensor; x: Tensor; bounds: Tensor; dx: Tensor }>(
  "convolution_backward",
  { dy: "c M C", x: "c M C", weight: "f32 C T", bias: "f32 C", bounds: "i32 M 2", dx: "c M C" },
  {
    cpu: ({ dy, x, weight, bias, bounds, dx }) => {
      const sizes = [dim(x, 0), dim(x, 1), dim(weight, 1)] as const;
      c.convolution_backward(dy.ptr, x.ptr, strideOf(x), ...weightsOf({ weight, bias }), bounds.ptr, dx.ptr, ...sizes);
    },
    cuda: ({ dy, x, weight, bias, bounds, dx }, gpu) => {
      const [M, C] = [dim(x, 0), dim(x, 1)];
      const kernel = gpu.kernel("convolution_backward", { TAPS: dim(weight, 1) });
      const grid = [cdiv(M, kernel.constant("BM")), cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { ...weightsFor({ weight, bias }), dy, x, bounds, dx, M, C, stride: strideOf(x) });
    },
  },
);

/** The last rows of sequences that are kept: places i32[M] as cache_write has them, S sequences of `capacity` rows each. */
type Kept = { readonly places: Tensor; readonly window: Tensor; readonly capacity: number };

/**
 * window[s] = the last T - 1 rows of x, the earliest first, 0 before its first, of each sequence that ends in the pass: s =
 * places / capacity of its last row, nothing where that is below 0. window c[S, T - 1, C].
 */
export const convolutionKeep = op<Kept & { x: Tensor; bounds: Tensor }>(
  "convolution_keep",
  { x: "c M C", bounds: "i32 M 2", places: "i32 M", window: "c S T C" },
  {
    cpu: ({ x, bounds, places, window, capacity }) => {
      const sizes = [dim(x, 0), dim(x, 1), dim(window, 1) + 1, capacity] as const;
      c.convolution_keep(x.ptr, strideOf(x), bounds.ptr, places.ptr, window.ptr, ...sizes);
    },
    cuda: ({ x, bounds, places, window, capacity }, gpu) => {
      const [M, C] = [dim(x, 0), dim(x, 1)];
      const kernel = gpu.kernel("convolution_keep", { TAPS: dim(window, 1) + 1 });
      const grid = [M, cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { x, bounds, places, window, C, stride: strideOf(x), capacity });
    },
  },
);

/** A row of each sequence: y as convolution_forward has it, from its window, which moves on by the row; 0 without a place. */
export const convolutionDecode = op<Kept & Weights & { x: Tensor; y: Tensor }>(
  "convolution_decode",
  { x: "c M C", weight: "f32 C T", bias: "f32 C", places: "i32 M", window: "c S K C", y: "c M C" },
  {
    cpu: ({ x, weight, bias, places, window, y, capacity }) => {
      const sizes = [dim(x, 0), dim(x, 1), dim(weight, 1), capacity] as const;
      c.convolution_decode(x.ptr, strideOf(x), ...weightsOf({ weight, bias }), places.ptr, window.ptr, y.ptr, ...sizes);
    },
    cuda: ({ x, weight, bias, places, window, y, capacity }, gpu) => {
      const [M, C] = [dim(x, 0), dim(x, 1)];
      const kernel = gpu.kernel("convolution_decode", { TAPS: dim(weight, 1) });
      const grid = [M, cdiv(C, kernel.constant("BC"))] as const;
      gpu.launch(kernel, grid, { ...weightsFor({ weight, bias }), x, places, window, y, C, stride: strideOf(x), capacity });
    },
  },
);
