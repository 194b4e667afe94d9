// Causal attention within packed sequences, in blocks with a running softmax (FlashAttention, Dao 2023).

import { op } from "./op.ts";

type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };
const known = ({ heads, kvHeads, headDim }: Heads) => ({ W: (heads + 2 * kvHeads) * headDim, O: heads * headDim, Q: heads });
const shared = { qkv: "c M W", bounds: "i32 M 2", out: "c M O", lse: "f32 Q M" };

export const attentionForward = op("attention_forward", shared, known);
export const attentionBackward = op("attention_backward", { ...shared, dout: "c M O", delta: "f32 Q M", dqkv: "c M W" }, known);

/** Keys and values kept of sequences that grow by a row at a time. */
const cached = (heads: Heads) => ({ ...known(heads), K: heads.kvHeads * heads.headDim });

export const cacheWrite = op("cache_write", { qkv: "c M W", places: "i32 M", cache: "c S 2K" }, cached);
export const attentionDecode = op(
  "attention_decode",
  { qkv: "c M W", cache: "c S 2K", bounds: "i32 M 2", out: "c M O" },
  cached,
);
