// Causal attention within packed sequences, in blocks with a running softmax (FlashAttention, Dao 2023).

import { base, F, I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import { ints } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Choice, Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { keyShareBytes, keyShares } from "../device/scratch.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  attention_forward: { args: [P, P, P, I, I, P, P, I, I, I, I, F, I, F], returns: "void" },
  attention_sink: { args: [P, P, P, P, I, I, I], returns: "void" },
  attention_backward: { args: [P, P, P, I, I, P, P, P, P, P, I, I, I, I, F, I, F], returns: "void" },
});

export type Heads = { readonly heads: number; readonly kvHeads: number; readonly headDim: number };
type Shared = Heads & {
  readonly qkv: Tensor;
  readonly bounds: Tensor;
  readonly out: Tensor;
  readonly lse: Tensor;
  readonly scale: number;
  readonly window: number;
  readonly cap: number;
};
export const sizesOf = ({ heads, kvHeads, headDim }: Heads) => ({
  W: (heads + 2 * kvHeads) * headDim,
  O: heads * headDim,
  Q: heads,
});
const shared = { qkv: "c M W", bounds: "i32 M 2", out: "c M O", lse: "f32 Q M" };

/** First row and length of each sequence, from the bounds of the rows. */
export function sequencesOf(bounds: Tensor): { readonly table: Int32Array; readonly count: number; readonly longest: number } {
  const values = ints(bounds);
  const table = new Int32Array(new ArrayBuffer(values.byteLength));
  let [count, longest] = [0, 0];
  for (let row = 0; row < dim(bounds, 0); ) {
    const length = values[2 * row + 1]! - values[2 * row]!;
    if (length > 0) {
      table[2 * count] = row;
      table[2 * count++ + 1] = length;
      longest = Math.max(longest, length);
    }
    row += Math.max(1, length);
  }
  return { table, count, longest };
}

/** Padding rows belong to no sequence: what C leaves as it is is 0. */
const clear = (t: Tensor): void => base.native_zero(t.ptr, sizeOf(t.shape) * bytesOf(t.dtype));

/** The variant for heads of D, or the narrowest that masks what a head has not. */
export function headVariant(gpu: Launcher, name: string, D: number, choice: Choice = {}): Variant {
  const all = gpu.variants(name, choice);
  const found =
    all.find((kernel) => kernel.constant("EXACT") === 1 && kernel.constant("HEAD_DIM") === D) ??
    all.find((kernel) => kernel.constant("EXACT") === 0 && kernel.constant("HEAD_DIM") >= D);
  if (found) return found;
  const sizes = all.map((kernel) => `${kernel.constant("EXACT") === 1 ? "" : "up to "}${kernel.constant("HEAD_DIM")}`);
  throw new RequestError(
    "device.heads",
    `the base model has heads of ${D}; attention on this GPU was compiled for heads of ${sizes.join(", ")}`,
    'set device to "cpu"',
  );
}

/**
 * dk and dv are made by one launch, or where heads are wide each by its own; with PARTS in shares, if the query heads are
 * divided and there is such a variant, or no other.
 */
function keyVariants(gpu: Launcher, D: number, shares: number, choice: Choice): readonly Variant[] {
  const name = "attention_backward_kv";
  const first = headVariant(gpu, name, D, choice);
  const all = gpu.variants(name, { ...choice, HEAD_DIM: first.constant("HEAD_DIM"), EXACT: first.constant("EXACT") });
  const wanted = all.filter((kernel) => kernel.constant("PARTS") === Number(shares > 1));
  return wanted.length > 0 ? wanted : all;
}

const capped = (cap: number): Choice => ({ CAP: cap > 0 ? 1 : 0 });

/**
 * Causal attention within each sequence. qkv c[M, (Q + 2C) D]; bounds i32[M, 2] = first row of the row's sequence and one
 * past its last (equal for padding rows: out is 0); row m sees rows max(first, m - window + 1) .. m, window 0 = no limit.
 * Query head h reads key head floor(h C / Q). out c[M, Q D]; lse f32[Q, M] = log sum exp of the scores, scale q k, or cap
 * tanh(scale q k / cap) with a cap above 0.
 */
export const attentionForward = op<Shared>("attention_forward", shared, {
  known: sizesOf,
  cpu: ({ qkv, bounds, out, lse, heads, kvHeads, headDim: D, scale, window, cap }, host) => {
    const { table, count, longest } = sequencesOf(bounds);
    clear(out);
    const M = dim(qkv, 0);
    c.attention_forward(
      ...([host.sgemmPtr, qkv.ptr, table, count, longest, out.ptr, lse.ptr] as const),
      ...([M, heads, kvHeads, D, scale, window, cap] as const),
    );
  },
  cuda: ({ qkv, bounds, out, lse, heads, kvHeads, headDim: D, scale, window, cap }, gpu) => {
    const M = dim(qkv, 0);
    const kernel = headVariant(gpu, "attention_forward", D, capped(cap));
    gpu.launch(kernel, [M / kernel.constant("BM"), heads], {
      ...{ q_rows: qkv, kv_rows: qkv, bounds, out, lse, M, D, heads, kv_heads: kvHeads, scale, window, cap },
    });
  },
});

/** dqkv c[M, (Q + 2C) D] from dout c[M, Q D]; delta f32[Q, M] is scratch: sum(dout * out) of each head. Deterministic. */
export const attentionBackward = op<Shared & { dout: Tensor; delta: Tensor; dqkv: Tensor }>(
  "attention_backward",
  { ...shared, dout: "c M O", delta: "f32 Q M", dqkv: "c M W" },
  {
    known: sizesOf,
    cpu: ({ qkv, bounds, out, lse, dout, delta, dqkv, heads, kvHeads, headDim, scale, window, cap }, host) => {
      const { table, count, longest } = sequencesOf(bounds);
      clear(dqkv);
      c.attention_backward(
        host.sgemmPtr,
        qkv.ptr,
        table,
        count,
        longest,
        out.ptr,
        lse.ptr,
        dout.ptr,
        delta.ptr,
        dqkv.ptr,
        dim(qkv, 0),
        heads,
        kvHeads,
        headDim,
        scale,
        window,
        cap,
      );
    },
    cuda: ({ qkv, bounds, out, lse, dout, delta, dqkv, heads, kvHeads, headDim: D, scale, window, cap }, gpu) => {
      const M = dim(qkv, 0);
      const tensors = { q_rows: qkv, kv_rows: qkv, do_rows: dout, bounds, lse, delta, dqkv };
      const sizes = { M, D, heads, kv_heads: kvHeads, scale, window, cap };
      const queries = headVariant(gpu, "attention_backward_q", D, capped(cap));
      gpu.launch(queries, [M / queries.constant("BM"), heads], { ...tensors, ...sizes, out });
      const wanted = keyShares(heads, kvHeads);
      const variants = keyVariants(gpu, D, wanted, capped(cap));
      const isDivided = variants[0]!.constant("PARTS") === 1;
      const splits = isDivided ? wanted : 1;
      const parts = isDivided ? gpu.scratch(keyShareBytes(M, kvHeads, D, splits)) : 0;
      for (const keys of variants)
        gpu.launch(keys, [M / keys.constant("BN"), kvHeads * splits], { ...tensors, ...sizes, parts, splits });
      if (!isDivided) return;
      const sum = gpu.kernel("attention_sum_keys");
      const grid = [M, cdiv(2 * kvHeads * D, sum.constant("BLOCK"))] as const;
      gpu.launch(sum, grid, { parts, dqkv, M, D, heads, kv_heads: kvHeads, splits });
    },
  },
);

/**
 * Gives the softmax of each head another logit, which has no value: out c[M, Q D] and lse f32[Q, M] as attention_forward leaves
 * them become what they are with it; rows of `bounds` i32[M, 2] that attend to nothing stay. The backward pass is then that
 * without sinks.
 */
export const attentionSink = op<{ out: Tensor; lse: Tensor; sinks: Tensor; bounds: Tensor }>(
  "attention_sink",
  { out: "c M O", lse: "f32 Q M", sinks: "f32 Q", bounds: "i32 M 2" },
  {
    cpu: ({ out, lse, sinks, bounds }) =>
      c.attention_sink(out.ptr, lse.ptr, sinks.ptr, bounds.ptr, dim(out, 0), dim(sinks, 0), dim(out, 1) / dim(sinks, 0)),
    cuda: ({ out, lse, sinks, bounds }, gpu) => {
      const kernel = gpu.kernel("attention_sink");
      const [M, heads] = [dim(out, 0), dim(sinks, 0)];
      gpu.launch(kernel, [M / kernel.constant("ROWS"), heads], { out, lse, sinks, bounds, M, D: dim(out, 1) / heads });
    },
  },
);
