// The kernels of a training step and of generation: their names and arguments, the one contract of all devices. `ops/` checks
// shapes and calls them; device/cpu implements them over BLAS and C, kernels/triton for GPUs, under the same names.
//
// Letters: M rows (tokens of a micro-batch, packed), H hidden, K input and N output features of a linear, G linears that share
// an input (1 to 3), L slots of adapters, E elements of s, T target rows, V vocabulary, D head dimension, Q and C query and key heads.
// c: the device's compute type (f32 or bf16). Arithmetic inside a kernel is f32 throughout.
//
// Rows: an adapter's rows begin at a multiple of the device's row tile; `tileAdapter` i32[M / rowTile] names the adapter of
// each tile, -1 for none (then the base alone is computed). Padding rows lie at the end of an adapter's tiles: they hold a
// valid token and an empty attention range, and their gradients are zero, so that they change nothing.
//
// Adapters: each has memory of its own, which kernels find by tables with a row for each slot, `stride` of the tensor apart.
// `ranks` i32[L, G] holds ranks, 0 where a linear is not a target; `scale` f32[L, G] what multiplies B A x. `factors` i64[L, G,
// 4] are addresses of four contiguous matrices: A c[r, K] and the transposed B c[r, N of the linear], and their gradients in
// f32; 0 where the rank is 0. `vectors` i64[L, G, 4] are addresses of f32 vectors of the adapter's method: what it stores, each
// followed by its gradient, and what is derived. A vector along the output is one for the whole group, [N]. `firstColumn` says
// where each of the G linears begins in N, and ends with N: [0, N] or [0, Nq, Nq + Nk, N].
//
// s = drop(x) A^T and its gradient ds, c[E], hold for each row as many columns as its adapter needs there: W = the sum over g of
// ranks[l, g] rounded up to 16, linear g after those before it. The rows of tile t begin at element 16 lowAt[t], `lowAt` i32[M /
// rowTile], W apart. What lies between a rank and the next multiple of 16 is zero or not read.
//
// Dropout: `dropout` i32[L, 4] = seed, step, keep threshold, bits of f32 1 / (1 - p). An element of row m, column k is kept
// when dropoutBits(dropoutRowKey(seed, step, module, rowNumber[m]), k) >= threshold, as unsigned numbers (base/rng.ts);
// threshold 0 keeps all. `module` numbers the group within the whole model: layer * 4 + group.

import type { Tensor } from "./device.ts";
import type { PackedWeight, Weight } from "./packed.ts";

/** What every kernel that touches adapters reads. */
type AdapterArgs = {
  readonly tileAdapter: Tensor;
  readonly lowAt: Tensor;
  readonly factors: Tensor;
  readonly ranks: Tensor;
};
type DropoutArgs = { readonly rowNumber: Tensor; readonly dropout: Tensor; readonly module: number };
type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };

type Projected = {
  readonly side: "a" | "b";
  readonly factors: Tensor;
  readonly vectors: Tensor;
  readonly ranks: Tensor;
  readonly firstColumn: readonly number[];
  /** K */
  readonly width: number;
  readonly which: Tensor;
  readonly projection: Tensor;
};

export type Kernels = {
  /** x[m] = table[ids[m]]: ids i32[M], table c[V, H], x c[M, H]. */
  embed_forward: { readonly ids: Tensor; readonly table: Tensor; readonly x: Tensor };

  /** y = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps): x, y c[M, H], weight c[H], rstd f32[M]. */
  rmsnorm_forward: {
    readonly x: Tensor;
    readonly weight: Tensor;
    readonly y: Tensor;
    readonly rstd: Tensor;
    readonly eps: number;
  };
  /** dx = residual + rstd * (w dy - xhat mean(w dy xhat)), xhat = x rstd. `residual` c[M, H] may be `dx` itself, or null. */
  rmsnorm_backward: {
    readonly dy: Tensor;
    readonly x: Tensor;
    readonly weight: Tensor;
    readonly rstd: Tensor;
    readonly residual: Tensor | null;
    readonly dx: Tensor;
  };

  /**
   * Rotates q and k of qkv c[M, (Q + 2C) D] by their row's position, halves paired as Hugging Face does: out[i] = x[i] cos -
   * x[i + D/2] sin, out[i + D/2] = x[i + D/2] cos + x[i] sin; cos, sin f32[P, D/2]. With qWeight and kWeight c[D] each head is
   * first RMS-normalised (Qwen 3). `out` has qkv's shape and may be qkv itself when there are no norms; v is copied when not.
   */
  rope_forward: Heads & {
    readonly qkv: Tensor;
    readonly positions: Tensor;
    readonly cos: Tensor;
    readonly sin: Tensor;
    readonly qWeight: Tensor | null;
    readonly kWeight: Tensor | null;
    readonly out: Tensor;
    readonly eps: number;
  };
  /** The gradient of rope_forward, in place on dqkv c[M, (Q + 2C) D]; `qkv` is what rope_forward read (null without norms). */
  rope_backward: Heads & {
    readonly dqkv: Tensor;
    readonly positions: Tensor;
    readonly cos: Tensor;
    readonly sin: Tensor;
    readonly qkv: Tensor | null;
    readonly qWeight: Tensor | null;
    readonly kWeight: Tensor | null;
    readonly eps: number;
  };

  /**
   * Causal attention within each sequence. qkv c[M, (Q + 2C) D]; bounds i32[M, 2] = first row of the row's sequence and one
   * past its last (equal for padding rows: out is 0); row m sees rows max(first, m - window + 1) .. m, window 0 = no limit.
   * Query head h reads key head floor(h C / Q). out c[M, Q D]; lse f32[Q, M] = log sum exp of scale q k.
   */
  attention_forward: Heads & {
    readonly qkv: Tensor;
    readonly bounds: Tensor;
    readonly out: Tensor;
    readonly lse: Tensor;
    readonly scale: number;
    readonly window: number;
  };
  /** dqkv c[M, (Q + 2C) D] from dout c[M, Q D]; delta f32[Q, M] is scratch: sum(dout * out) of each head. Deterministic. */
  attention_backward: Heads & {
    readonly qkv: Tensor;
    readonly bounds: Tensor;
    readonly out: Tensor;
    readonly lse: Tensor;
    readonly dout: Tensor;
    readonly delta: Tensor;
    readonly dqkv: Tensor;
    readonly scale: number;
    readonly window: number;
  };

  /**
   * cache[places[m]] = k and v of row m, or nothing where places[m] < 0: qkv c[M, (Q + 2C) D], places i32[M], distinct; cache
   * c[S, 2 C D], the heads of k, then those of v. Other rows of the cache stay as they are.
   */
  cache_write: Heads & { readonly qkv: Tensor; readonly places: Tensor; readonly cache: Tensor };
  /**
   * Attention of single rows over keys that were kept, their own among them. Row m of qkv c[M, (Q + 2C) D] sees rows
   * max(bounds[m, 0], bounds[m, 1] - window) .. bounds[m, 1] - 1 of cache c[S, 2 C D] (none: out is 0), window 0 = no limit; k
   * and v of qkv are not read. out c[M, Q D].
   */
  attention_decode: Heads & {
    readonly qkv: Tensor;
    readonly cache: Tensor;
    readonly bounds: Tensor;
    readonly out: Tensor;
    readonly scale: number;
    readonly window: number;
  };

  /** h = silu(gate) * up: gateUp c[M, 2 I] (gate first), h c[M, I]. */
  swiglu_forward: { readonly gateUp: Tensor; readonly h: Tensor };
  /** dgateUp c[M, 2 I] (may be gateUp itself) from dh c[M, I]. */
  swiglu_backward: { readonly dh: Tensor; readonly gateUp: Tensor; readonly dgateUp: Tensor };

  /** s = drop(x) A^T: x c[M, K], s c[E]. */
  lora_down: AdapterArgs & DropoutArgs & { readonly x: Tensor; readonly s: Tensor };
  /**
   * y = x W^T + bias + residual + scale s B^T. x c[M, K], weight c[N, K], bias c[N] or null, residual c[M, N] (may be y) or
   * null, s c[E], y c[M, N]. With `lora` null only the frozen product. A packed weight (packed.ts) is taken apart to c first;
   * fp8 is multiplied as it is, with each row of x rounded to e4m3 at its own scale.
   */
  linear_forward: {
    readonly x: Tensor;
    readonly weight: Weight;
    readonly bias: Tensor | null;
    readonly residual: Tensor | null;
    readonly y: Tensor;
    readonly lora: (AdapterArgs & { readonly s: Tensor; readonly scale: Tensor; readonly firstColumn: readonly number[] }) | null;
  };
  /** In one read of dy c[M, N]: ds = scale dy B, ds c[E]; the gradient of B += scale dy^T s. */
  lora_up_grad: AdapterArgs & {
    readonly dy: Tensor;
    readonly s: Tensor;
    readonly scale: Tensor;
    readonly firstColumn: readonly number[];
    readonly ds: Tensor;
  };
  /**
   * dx = dy W + drop'(ds A): dy c[M, N], weight c[N, K] or packed, ds c[E], dx c[M, K]; drop' applies the forward's mask. With
   * fp8 it is dy times the weight's scales, row by row, that is rounded to e4m3.
   */
  linear_backward: {
    readonly dy: Tensor;
    readonly weight: Weight;
    readonly dx: Tensor;
    readonly lora: (AdapterArgs & DropoutArgs & { readonly ds: Tensor }) | null;
  };
  /** The gradient of A += ds^T drop(x): x c[M, K], ds c[E]. */
  lora_down_grad: AdapterArgs & DropoutArgs & { readonly x: Tensor; readonly ds: Tensor };

  /**
   * DoRA's norms of the adapters l whose `stale` i32[L] is not 0: norm[n] = |weight[n] + scale sum_r B[n, r] A[r]| over the
   * rows of the linears that l targets; gain[n] = m[n] / norm[n] and inverse[n] = 1 / norm[n], or 0 for a row of zeros. Where
   * stale is 2 m[n] first becomes norm[n]. All else is left as it is. `vectors` are those of m, its gradient, gain, inverse.
   */
  dora_norm: {
    readonly weight: Weight;
    readonly factors: Tensor;
    readonly vectors: Tensor;
    readonly scale: Tensor;
    readonly ranks: Tensor;
    readonly firstColumn: readonly number[];
    readonly stale: Tensor;
  };
  /**
   * y = gain z + bias + residual in the tiles of adapters whose `decomposed` i32[L] is 1, over all columns of the group; y's
   * other rows are left as they are. z, y c[M, N]; bias c[N] and residual c[M, N] may be null.
   */
  dora_forward: {
    readonly z: Tensor;
    readonly bias: Tensor | null;
    readonly residual: Tensor | null;
    readonly vectors: Tensor;
    readonly decomposed: Tensor;
    readonly y: Tensor;
    readonly tileAdapter: Tensor;
  };
  /**
   * In the tiles of decomposed adapters the gradient of m[n] += inverse[n] sum_m dy[m, n] z[m, n], then z becomes gain[n] dy[m,
   * n]; in all other tiles z becomes dy. An adapter's tiles lie side by side and are summed in order.
   */
  dora_backward: {
    readonly dy: Tensor;
    readonly z: Tensor;
    readonly vectors: Tensor;
    readonly decomposed: Tensor;
    readonly tileAdapter: Tensor;
  };

  /**
   * VeRA's factors of the adapters l whose `which` i32[L] is not 0. Side a: A[r, k] = d[r] draw(r width + k) of key A and bound
   * A; side b: B[n, r], which is held transposed, = b[n] draw(n rank + r) of key B and bound B, n the row within its linear.
   * projection i32[L, 5]: keys A and B, width, the bits of bounds A and B (f32); element i is ((mix(key ^ i) >> 8) 2^-23 - 1)
   * bound. `vectors` are those of d, its gradient, b, its gradient.
   */
  vera_expand: Projected;
  /**
   * The gradient of d[r] += sum over k of A's gradient times draw, that of b[n] += sum over r of B's times draw, of the same
   * elements, and these become 0.
   */
  vera_reduce: Projected;

  /** y[t] = x[rows[t]], or zeros where rows[t] is negative: rows i32[T], x c[M, H], y c[T, H]. */
  rows_gather: { readonly x: Tensor; readonly rows: Tensor; readonly y: Tensor };
  /**
   * y[p] = the mean of rows bounds[p, 0] .. bounds[p, 1] (at least one) of x: x c[T, H], bounds i32[P, 2], y c[P, H]. In their
   * order.
   */
  pool_forward: { readonly x: Tensor; readonly bounds: Tensor; readonly y: Tensor };
  /** dx[t] = dy[p] / rows of p, for the p whose row t is: dy c[P, H], dx c[T, H], every row of which is one p's. */
  pool_backward: { readonly dy: Tensor; readonly bounds: Tensor; readonly dx: Tensor };
  /** dx[rows[t]] = dy[t] for distinct rows, those below zero left out; other rows of dx are left as they are. */
  rows_scatter: { readonly dy: Tensor; readonly rows: Tensor; readonly dx: Tensor };
  /**
   * Cross-entropy of each row of logits c[T, V], of which the first `classes` columns count, with targets i32[T]: loss f32[T] =
   * -log p(target); hit i32[T] = 1 where the target is the (first) largest logit. With grad = 1 the logits become weights[t] *
   * (p - onehot), weights f32[T], and zero from column `classes` on.
   */
  xent: {
    readonly logits: Tensor;
    readonly classes: number;
    readonly targets: Tensor;
    readonly weights: Tensor;
    readonly loss: Tensor;
    readonly isCorrect: Tensor;
    readonly grad: 0 | 1;
  };

  /**
   * squares f32[S] = the sum of squares of each of the S tensors of an adapter's gradients f32[P]. tensors i32[S, 3] = first
   * element within the adapter's block, rows, columns.
   */
  grad_norm: { readonly grads: Tensor; readonly tensors: Tensor; readonly squares: Tensor };
  /**
   * One step of an adapter, with its gradients multiplied by `coefficient` (clipping); then its gradients become 0. params,
   * grads, m, v f32[P]; copy bf16[P] or null: what the kernels read. table f32[11]:
   * 1, AdamW (Loshchilov and Hutter 2019, as PyTorch computes it): 1, learning rate, 1 - beta1, beta2, 1 - beta2, eps, weight
   * decay, 1 - beta1^t, 1 - beta2^t, coefficient, learning rate of B (LoRA+, Hayou et al. 2024); differences from 1 come from
   * doubles, since 1 - 0.999f is off by 1e-5. 2, SGD (as PyTorch computes it): 2, learning rate, momentum, nesterov (0 or 1),
   * -, -, weight decay, -, -, coefficient, learning rate of B; d = g + decay p, m = momentum m + d, p -= lr (nesterov ? d +
   * momentum m : m), and v stays as it is. 0: nothing is touched. factors i32[P / 128]: 1 where 128 elements of a block are of
   * a B, else 0.
   */
  adamw_step: {
    readonly params: Tensor;
    readonly grads: Tensor;
    readonly m: Tensor;
    readonly v: Tensor;
    readonly copy: Tensor | null;
    readonly factors: Tensor;
    readonly table: Tensor;
  };

  /**
   * out[i] = ((bits(i) >>> 8) / 2^23 - 1) * scale, uniform in [-scale, scale), for out c[N]: bits(i) = mix(mix(mix(seed) ^
   * high) ^ low) with the mix of base/rng.ts and i = high * 2^32 + low. `seed` is a 32-bit number, `scale` an f32. The first
   * factor is exact and the product is rounded once (to bf16 once more), so all devices make the same numbers: a model's random
   * weights.
   */
  random_fill: { readonly out: Tensor; readonly seed: number; readonly scale: number };

  /**
   * Quantises linear `linear` of a packed weight from its rows c[n, K]; absmax f32[B], B >= n K / 64, is scratch. What to:
   * packed.ts.
   */
  quantise: { readonly from: Tensor; readonly weight: PackedWeight; readonly linear: number; readonly absmax: Tensor };
  /** All of a packed weight as c[N, K]. */
  dequantise: { readonly weight: PackedWeight; readonly out: Tensor };
};

export type KernelName = keyof Kernels;
