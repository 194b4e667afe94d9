// The kernels of a training step and of generation: their names and arguments, the one contract of all devices. `ops/` checks
// shapes and calls them; device/cpu implements them over BLAS and C, kernels/triton for GPUs, under the same names.
//
// Letters: M rows (tokens of a micro-batch, packed), H hidden, K input and N output features of a linear, G linears that share
// an input (1 to 3), R padded rank, L adapters, T target rows, V vocabulary, D head dimension, Q and C query and key heads.
// c: the device's compute type (f32 or bf16). Arithmetic inside a kernel is f32 throughout.
//
// Rows: an adapter's rows begin at a multiple of the device's row tile; `tileAdapter` i32[M / rowTile] names the adapter of
// each tile, -1 for none (then the base alone is computed). Padding rows lie at the end of an adapter's tiles: they hold a
// valid token and an empty attention range, and their gradients are zero, so that they change nothing.
//
// Adapters: `a` is [L, G * R, K] and `b` is [L, N, R], row-major inside an adapter; `stride` of the tensor is the distance
// between adapters. `ranks` i32[L, G] holds true ranks, 0 where a linear is not a target; `scale` f32[L, G] what multiplies
// B A x. Elements beyond an adapter's rank are zero in a, b, s, ds, da and db. `firstColumn` says where each of the G linears
// begins in N, and ends with N: [0, N] or [0, Nq, Nq + Nk, N].
//
// Dropout: `dropout` i32[L, 4] = seed, step, keep threshold, bits of f32 1 / (1 - p). An element of row m, column k is kept
// when dropoutBits(dropoutRowKey(seed, step, module, rowNumber[m]), k) >= threshold, as unsigned numbers (base/rng.ts);
// threshold 0 keeps all. `module` numbers the group within the whole model: layer * 4 + group.

import type { Tensor } from "./device.ts";
import type { PackedWeight, Weight } from "./packed.ts";

/** What every kernel that touches adapters reads. */
type AdapterArgs = { readonly tileAdapter: Tensor; readonly ranks: Tensor };
type DropoutArgs = { readonly rowNumber: Tensor; readonly dropout: Tensor; readonly module: number };
type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };

type Projected = {
  readonly side: "a" | "b";
  readonly vector: Tensor;
  readonly ranks: Tensor;
  readonly firstColumn: readonly number[];
  readonly which: Tensor;
  readonly projection: Tensor;
};

export type Kernels = {
  /** x[m] = table[ids[m]]: ids i32[M], table c[V, H], x c[M, H]. */
  embed_forward: { readonly ids: Tensor; readonly table: Tensor; readonly x: Tensor };

  /**
   * y = residual + weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps): x, y c[M, H], weight f32[H], rstd f32[M]; `residual`
   * c[M, H] may be null.
   */
  rmsnorm_forward: {
    readonly x: Tensor;
    readonly weight: Tensor;
    readonly residual: Tensor | null;
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
   * x[i + D/2] sin, out[i + D/2] = x[i + D/2] cos + x[i] sin; cos, sin f32[P, D/2]. With qWeight and kWeight f32[D] each head is
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
   * Query head h reads key head floor(h C / Q). out c[M, Q D]; lse f32[Q, M] = log sum exp of the scores, which are scale q k,
   * with a cap c above 0 c tanh(scale q k / c).
   */
  attention_forward: Heads & {
    readonly qkv: Tensor;
    readonly bounds: Tensor;
    readonly out: Tensor;
    readonly lse: Tensor;
    readonly scale: number;
    readonly window: number;
    readonly cap: number;
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
    readonly cap: number;
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
    readonly cap: number;
  };

  /** h = silu(gate) * up: gateUp c[M, 2 I] (gate first), h c[M, I]. */
  swiglu_forward: { readonly gateUp: Tensor; readonly h: Tensor };
  /** dgateUp c[M, 2 I] (may be gateUp itself) from dh c[M, I]. */
  swiglu_backward: { readonly dh: Tensor; readonly gateUp: Tensor; readonly dgateUp: Tensor };

  /** h = gelu(gate) * up, gelu by its tanh approximation: gate, up c[M, I], rows strided, h c[M, I]. */
  geglu_forward: { readonly gate: Tensor; readonly up: Tensor; readonly h: Tensor };
  /** dgate, dup c[M, I], rows strided (may be gate and up themselves), from dh c[M, I]; no dup where it is null. */
  geglu_backward: {
    readonly dh: Tensor;
    readonly gate: Tensor;
    readonly up: Tensor;
    readonly dgate: Tensor;
    readonly dup: Tensor | null;
  };

  /** s[m, g R + r] = sum_k drop(x)[m, k] a[adapter, g R + r, k]: x c[M, K], a c[L, G R, K], s c[M, G R]. */
  lora_down: AdapterArgs & DropoutArgs & { readonly x: Tensor; readonly a: Tensor; readonly s: Tensor };
  /**
   * y = x W^T + bias + residual + scale s B^T. x c[M, K], weight c[N, K], bias c[N] or null, residual c[M, N] (may be y) or
   * null, s c[M, G R], b c[L, N, R], y c[M, N]. With `lora` null only the frozen product. A packed weight (packed.ts) is taken
   * apart to c first; fp8 is multiplied as it is, with each row of x rounded to e4m3 at its own scale.
   */
  linear_forward: {
    readonly x: Tensor;
    readonly weight: Weight;
    readonly bias: Tensor | null;
    readonly residual: Tensor | null;
    readonly y: Tensor;
    readonly lora:
      | (AdapterArgs & {
          readonly s: Tensor;
          readonly b: Tensor;
          readonly scale: Tensor;
          readonly firstColumn: readonly number[];
        })
      | null;
  };
  /**
   * In one read of dy c[M, N]: ds[m, g R + r] = scale sum_n dy[m, n] b[adapter, n, r] over the columns of linear g, ds c[M, G
   * R]; db[adapter, n, r] += scale sum_m dy[m, n] s[m, g R + r], db f32[L, N, R].
   */
  lora_up_grad: AdapterArgs & {
    readonly dy: Tensor;
    readonly s: Tensor;
    readonly b: Tensor;
    readonly scale: Tensor;
    readonly firstColumn: readonly number[];
    readonly ds: Tensor;
    readonly db: Tensor;
  };
  /**
   * dx = dy W + drop'(ds A): dy c[M, N], weight c[N, K] or packed, ds c[M, G R], a c[L, G R, K], dx c[M, K]; drop' applies the
   * forward's mask. With fp8 it is dy times the weight's scales, row by row, that is rounded to e4m3.
   */
  linear_backward: {
    readonly dy: Tensor;
    readonly weight: Weight;
    readonly dx: Tensor;
    readonly lora: (AdapterArgs & DropoutArgs & { readonly ds: Tensor; readonly a: Tensor }) | null;
  };
  /** da[adapter, g R + r, k] += sum_m ds[m, g R + r] drop(x)[m, k]: x c[M, K], ds c[M, G R], da f32[L, G R, K]. */
  lora_down_grad: AdapterArgs & DropoutArgs & { readonly x: Tensor; readonly ds: Tensor; readonly da: Tensor };

  /**
   * DoRA's norms of the adapters l whose `stale` i32[L] is not 0: norm[n] = |weight[n] + scale sum_r b[l, n, r] a[l, g R + r]|
   * over the rows of the linears that l targets; gain[l, n] = m[l, n] / norm[n] and inverse[l, n] = 1 / norm[n], or 0 for a row
   * of zeros. Where stale is 2 m[l, n] first becomes norm[n]. All else is left as it is. m f32[L, N], L strided; gain, inverse
   * f32[L, N].
   */
  dora_norm: {
    readonly weight: Weight;
    readonly a: Tensor;
    readonly b: Tensor;
    readonly scale: Tensor;
    readonly ranks: Tensor;
    readonly firstColumn: readonly number[];
    readonly m: Tensor;
    readonly gain: Tensor;
    readonly inverse: Tensor;
    readonly stale: Tensor;
  };
  /**
   * y = gain[adapter] z + bias + residual in the tiles of adapters whose `decomposed` i32[L] is 1; y's other rows are left as
   * they are. z, y c[M, N]; bias c[N] and residual c[M, N] may be null.
   */
  dora_forward: {
    readonly z: Tensor;
    readonly bias: Tensor | null;
    readonly residual: Tensor | null;
    readonly gain: Tensor;
    readonly decomposed: Tensor;
    readonly y: Tensor;
    readonly tileAdapter: Tensor;
  };
  /**
   * In the tiles of decomposed adapters dm[adapter, n] += inverse[adapter, n] sum_m dy[m, n] z[m, n], then z becomes
   * gain[adapter, n] dy[m, n]; in all other tiles z becomes dy. dm f32[L, N], L strided; an adapter's tiles lie side by side
   * and are summed in order.
   */
  dora_backward: {
    readonly dy: Tensor;
    readonly z: Tensor;
    readonly gain: Tensor;
    readonly inverse: Tensor;
    readonly decomposed: Tensor;
    readonly dm: Tensor;
    readonly tileAdapter: Tensor;
  };

  /**
   * VeRA's factors of the adapters l whose `which` i32[L] is not 0: factor[l, i, j] = vector[l, i] draw(i, j) where rank says
   * that there is something, all else is left as it is. Side a: factor c[L, G R, K], row i = g R + r for r below ranks[l, g],
   * draw = element r width + j of key A and bound A; side b: factor c[L, N, R], columns j below ranks[l, g], draw = element n
   * rank + j of key B and bound B, n the row within its linear. projection i32[L, 5]: keys A and B, width, the bits of bounds A
   * and B (f32); element i is ((mix(key ^ i) >> 8) 2^-23 - 1) bound. vector f32[L, G 256] (side a: that of linear g begins at
   * 256 g) or f32[L, N], L strided as factor is.
   */
  vera_expand: Projected & { readonly factor: Tensor };
  /**
   * vector[l, i] += sum over j of grad[l, i, j] draw(i, j), of the same elements, and these become 0. grad as factor, in f32.
   */
  vera_reduce: Projected & { readonly grad: Tensor };

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
   * squares f32[L, S] = the sum of squares of each of the S tensors of each adapter's gradients f32[L, P]. tensors i32[S, 3] =
   * first element within the adapter's block, rows, columns. Rows and columns of zeros must not change a bit of the sum, since
   * the padded rank depends on the other adapters: each SIMD lane adds whole rows (or every LANES-th column), and all are
   * combined last.
   */
  grad_norm: { readonly grads: Tensor; readonly tensors: Tensor; readonly squares: Tensor };
  /**
   * One step of each adapter whose `table` row says so, with its gradients multiplied by `coefficient` (clipping); then its
   * gradients become 0. params, grads, m, v f32[L, P]; copy bf16[L, P] or null: what the kernels read. table f32[L, 11]:
   * 1, AdamW (Loshchilov and Hutter 2019, as PyTorch computes it): 1, learning rate, 1 - beta1, beta2, 1 - beta2, eps, weight
   * decay, 1 - beta1^t, 1 - beta2^t, coefficient, learning rate of B (LoRA+, Hayou et al. 2024); differences from 1 come from
   * doubles, since 1 - 0.999f is off by 1e-5. 2, SGD (as PyTorch computes it): 2, learning rate, momentum, nesterov (0 or 1),
   * -, -, weight decay, -, -, coefficient, learning rate of B; d = g + decay p, m = momentum m + d, p -= lr (nesterov ? d +
   * momentum m : m), and v stays as it is. 0: nothing of the adapter is touched. factors i32[P / 128]: 1 where 128 elements of
   * a block are of a B, else 0.
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
