// Keys and values kept of sequences that grow by a row at a time, and attention over them.

import { F, I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import type { Tensor } from "../device/device.ts";
import { type Heads, headVariant, sizesOf } from "./attention.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  cache_write: { args: [P, P, P, I, I, I, I], returns: "void" },
  attention_decode: { args: [P, P, P, P, P, I, I, I, I, F, I, F], returns: "void" },
});

const known = (heads: Heads) => ({ ...sizesOf(heads), K: heads.kvHeads * heads.headDim });

/**
 * cache[places[m]] = k and v of row m, or nothing where places[m] < 0: qkv c[M, (Q + 2C) D], places i32[M], distinct; cache
 * c[S, 2 C D], the heads of k, then those of v. Other rows of the cache stay as they are.
 */
export const cacheWrite = op<Heads & { qkv: Tensor; places: Tensor; cache: Tensor }>(
  "cache_write",
  { qkv: "c M W", places: "i32 M", cache: "c S 2K" },
  {
    known,
    cpu: ({ qkv, places, cache, heads, kvHeads, headDim }) =>
      c.cache_write(qkv.ptr, places.ptr, cache.ptr, dim(qkv, 0), heads, kvHeads, headDim),
    cuda: ({ qkv, places, cache, heads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("cache_write");
      const words = (values: number) => (values * bytesOf(qkv.dtype)) / 4; // copies of bits
      const [W, skip] = [words(dim(cache, 1)), words(heads * D)];
      gpu.launch(kernel, [dim(qkv, 0), cdiv(W, kernel.constant("BLOCK"))], { qkv, places, cache, W, skip });
    },
  },
);

/**
 * Attention of single rows over keys that were kept, their own among them. Row m of qkv c[M, (Q + 2C) D] sees rows
 * max(bounds[m, 0], bounds[m, 1] - window) .. bounds[m, 1] - 1 of cache c[S, 2 C D] (none: out is 0), window 0 = no limit; k
 * and v of qkv are not read. Scores have a cap where it is above 0, as in attention_forward. `sinks` f32[Q] are one
 * more logit of each head, without a value; null for none. out c[M, Q D].
 */
export const attentionDecode = op<
  Heads & {
    qkv: Tensor;
    cache: Tensor;
    bounds: Tensor;
    sinks: Tensor | null;
    out: Tensor;
    scale: number;
    window: number;
    cap: number;
  }
>(
  "attention_decode",
  { qkv: "c M W", cache: "c S 2K", bounds: "i32 M 2", sinks: "f32 Q", out: "c M O" },
  {
    known,
    cpu: ({ qkv, cache, bounds, sinks, out, heads, kvHeads, headDim, scale, window, cap }) =>
      c.attention_decode(
        ...([qkv.ptr, cache.ptr, bounds.ptr, sinks?.ptr ?? null, out.ptr] as const),
        ...([dim(qkv, 0), heads, kvHeads, headDim, scale, window, cap] as const),
      ),
    cuda: ({ qkv, cache, bounds, sinks, out, heads, kvHeads, headDim: D, scale, window, cap }, gpu) => {
      gpu.launch(headVariant(gpu, "attention_decode", D), [dim(qkv, 0), heads], {
        ...{ qkv, cache, bounds, sinks, out, D, heads, kv_heads: kvHeads, scale, window, cap },
        has_sinks: flag(sinks),
      });
    },
  },
);
