// Launches of kernels/triton/attention.py and decode.py: flash attention, forward and backward, and attention over what is
// kept.

import { bytesOf } from "../../base/dtype.ts";
import { RequestError } from "../../base/errors.ts";
import type { KernelName } from "../kernels.ts";
import { cdiv, dim, type Implementations, type Launcher } from "./launcher.ts";
import type { Choice, Variant } from "./variants.ts";

type Family = Extract<KernelName, "attention_forward" | "attention_backward" | "attention_decode" | "cache_write">;

export function attentionFamily(gpu: Launcher): Pick<Implementations, Family> {
  /** The variant for heads of D, or the narrowest that masks what a head has not. */
  const variant = (name: string, D: number, choice: Choice = {}): Variant => {
    const all = gpu.variants(name, choice);
    const narrower = (a: Variant, b: Variant) => (b.constant("HEAD_DIM") < a.constant("HEAD_DIM") ? b : a);
    const fitting = all.filter((kernel) => kernel.constant("EXACT") === 0 && kernel.constant("HEAD_DIM") >= D);
    const found =
      all.find((kernel) => kernel.constant("EXACT") === 1 && kernel.constant("HEAD_DIM") === D) ??
      (fitting.length > 0 ? fitting.reduce(narrower) : null);
    if (found) return found;
    const sizes = all.map((kernel) => `${kernel.constant("EXACT") === 0 ? "up to " : ""}${kernel.constant("HEAD_DIM")}`);
    throw new RequestError(
      "device.heads",
      `the base model has heads of ${D}; attention on this GPU was compiled for heads of ${sizes.join(", ")}`,
      'set device to "cpu"',
    );
  };
  const capped = (cap: number): Choice => ({ CAP: cap > 0 ? 1 : 0 });
  return {
    attention_forward: ({ qkv, bounds, out, lse, heads, kvHeads, headDim: D, scale, window, cap }) => {
      const M = dim(qkv, 0);
      const kernel = variant("attention_forward", D, capped(cap));
      gpu.launch(kernel, [M / kernel.constant("BM"), heads], {
        ...{ q_rows: qkv, kv_rows: qkv, bounds, out, lse, M, D, heads, kv_heads: kvHeads, scale, window, cap },
      });
    },
    attention_backward: ({ qkv, bounds, out, lse, dout, delta, dqkv, heads, kvHeads, headDim: D, scale, window, cap }) => {
      const M = dim(qkv, 0);
      const shared = { q_rows: qkv, kv_rows: qkv, do_rows: dout, bounds, lse, delta, dqkv };
      const sizes = { M, D, heads, kv_heads: kvHeads, scale, window, cap };
      const queries = variant("attention_backward_q", D, capped(cap));
      gpu.launch(queries, [M / queries.constant("BM"), heads], { ...shared, ...sizes, out });
      const keys = variant("attention_backward_kv", D, capped(cap));
      gpu.launch(keys, [M / keys.constant("BN"), kvHeads], { ...shared, ...sizes });
    },
    /** Copies of bits, in words of 4 bytes. */
    cache_write: ({ qkv, places, cache, heads, headDim: D }) => {
      const kernel = gpu.kernel("cache_write");
      const [W, skip] = [dim(cache, 1), heads * D].map((values) => (values * bytesOf(qkv.dtype)) / 4);
      gpu.launch(kernel, [dim(qkv, 0), cdiv(W!, kernel.constant("BLOCK"))], { qkv, places, cache, W: W!, skip: skip! });
    },
    attention_decode: ({ qkv, cache, bounds, out, heads, kvHeads, headDim: D, scale, window, cap }) => {
      gpu.launch(variant("attention_decode", D), [dim(qkv, 0), heads], {
        ...{ qkv, cache, bounds, out, D, heads, kv_heads: kvHeads, scale, window, cap },
      });
    },
  };
}
