// Launches of kernels/triton/attention.py and decode.py: flash attention, forward and backward, and attention over what is
// kept.

import { bytesOf } from "../../base/dtype.ts";
import { RequestError } from "../../base/errors.ts";
import type { KernelName } from "../kernels.ts";
import { cdiv, dim, type Implementations, type Launcher } from "./launcher.ts";
import type { Variant } from "./variants.ts";

type Family = Extract<KernelName, "attention_forward" | "attention_backward" | "attention_decode" | "cache_write">;

export function attentionFamily(gpu: Launcher): Pick<Implementations, Family> {
  /** The variant for heads of D, or the narrowest that masks what a head has not. */
  const variant = (name: string, D: number): Variant => {
    const all = gpu.variants(name);
    const found =
      all.find((kernel) => kernel.constant("EXACT") === 1 && kernel.constant("HEAD_DIM") === D) ??
      all.find((kernel) => kernel.constant("EXACT") === 0 && kernel.constant("HEAD_DIM") >= D);
    if (found) return found;
    throw new RequestError(
      "device.heads",
      `the base model has heads of ${D}; attention on GPUs was compiled for heads of up to 128`,
      'set device to "cpu"',
    );
  };
  return {
    attention_forward: ({ qkv, bounds, out, lse, heads, kvHeads, headDim: D, scale, window }) => {
      const M = dim(qkv, 0);
      const kernel = variant("attention_forward", D);
      gpu.launch(kernel, [M / kernel.constant("BM"), heads], {
        ...{ q_rows: qkv, kv_rows: qkv, bounds, out, lse, M, D, heads, kv_heads: kvHeads, scale, window },
      });
    },
    attention_backward: ({ qkv, bounds, out, lse, dout, delta, dqkv, heads, kvHeads, headDim: D, scale, window }) => {
      const M = dim(qkv, 0);
      const shared = { q_rows: qkv, kv_rows: qkv, do_rows: dout, bounds, lse, delta, dqkv };
      const sizes = { M, D, heads, kv_heads: kvHeads, scale, window };
      const queries = variant("attention_backward_q", D);
      gpu.launch(queries, [M / queries.constant("BM"), heads], { ...shared, ...sizes, out });
      const keys = variant("attention_backward_kv", D);
      gpu.launch(keys, [M / keys.constant("BN"), kvHeads], { ...shared, ...sizes });
    },
    /** Copies of bits, in words of 4 bytes. */
    cache_write: ({ qkv, places, cache, heads, headDim: D }) => {
      const kernel = gpu.kernel("cache_write");
      const [W, skip] = [dim(cache, 1), heads * D].map((values) => (values * bytesOf(qkv.dtype)) / 4);
      gpu.launch(kernel, [dim(qkv, 0), cdiv(W!, kernel.constant("BLOCK"))], { qkv, places, cache, W: W!, skip: skip! });
    },
    attention_decode: ({ qkv, cache, bounds, out, heads, kvHeads, headDim: D, scale, window }) => {
      gpu.launch(variant("attention_decode", D), [dim(qkv, 0), heads], {
        ...{ qkv, cache, bounds, out, D, heads, kv_heads: kvHeads, scale, window },
      });
    },
  };
}
