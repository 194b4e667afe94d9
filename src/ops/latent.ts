// Heads of attention over latents (DeepSeek-AI 2024): q, k and v as attention reads them, of what linears make of the latents.
//
// Letters beyond op.ts: N plain and R rotated features of a head of q and k, U features of a head of v, Q heads of each. A head
// of q and k is R, then N features here, rotated ones paired by halves: scores do not depend on the order. Heads are D wide,
// with zeros after their own features.

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  latent_heads: { args: [P, P, P, P, I, I, I, I, I, I, I, I], returns: "void" },
  latent_heads_backward: { args: [P, P, P, P, I, I, I, I, I, I, I, I], returns: "void" },
  heads_narrow: { args: [P, P, I, I, I, I], returns: "void" },
});

type Heads = {
  readonly heads: number;
  readonly headDim: number;
  readonly plain: number;
  readonly rotated: number;
  readonly value: number;
  /** Rotated features come in pairs next to each other, not by halves. */
  readonly isInterleaved: boolean;
};

const known = ({ heads, headDim, plain, rotated, value }: Heads) => ({
  W: 3 * heads * headDim,
  A: heads * (plain + rotated),
  B: heads * (plain + value),
});
const sizesOf = ({ heads, headDim, plain, rotated, value, isInterleaved }: Heads) =>
  [heads, headDim, plain, rotated, value, Number(isInterleaved)] as const;
const named = ({ heads, headDim: D, plain: N, rotated: R, value: U, isInterleaved }: Heads) => ({
  ...{ heads, D, N, R, U, interleaved: Number(isInterleaved) },
});

/**
 * qkv c[M, 3 Q D] of queries c[M, Q (N + R)], keys c[M, Q (N + U)], of each head k's plain features and then v, and shared c[M,
 * S], whose last R columns are the rotated features of each head of k.
 */
export const latentHeadsForward = op<Heads & { queries: Tensor; keys: Tensor; shared: Tensor; qkv: Tensor }>(
  "latent_heads",
  { queries: "c M A", keys: "c M B", shared: "c M S", qkv: "c M W" },
  {
    known,
    cpu: ({ queries, keys, shared, qkv, ...of }) =>
      c.latent_heads(queries.ptr, keys.ptr, shared.ptr, qkv.ptr, dim(qkv, 0), dim(shared, 1), ...sizesOf(of)),
    cuda: ({ queries, keys, shared, qkv, ...of }, gpu) => {
      const kernel = gpu.kernel("latent_heads");
      const grid = [dim(qkv, 0), 3 * cdiv(of.heads * of.headDim, kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { queries, keys, shared, qkv, S: dim(shared, 1), ...named(of) });
    },
  },
);

/** The gradients of what latent_heads reads: of shared only its last R columns, which sum over heads; others stay. */
export const latentHeadsBackward = op<Heads & { dqkv: Tensor; dqueries: Tensor; dkeys: Tensor; dshared: Tensor }>(
  "latent_heads_backward",
  { dqkv: "c M W", dqueries: "c M A", dkeys: "c M B", dshared: "c M S" },
  {
    known,
    cpu: ({ dqkv, dqueries, dkeys, dshared, ...of }) =>
      c.latent_heads_backward(
        ...([dqkv.ptr, dqueries.ptr, dkeys.ptr, dshared.ptr, dim(dqkv, 0), dim(dshared, 1)] as const),
        ...sizesOf(of),
      ),
    cuda: ({ dqkv, dqueries, dkeys, dshared, ...of }, gpu) => {
      const kernel = gpu.kernel("latent_heads_backward");
      const [M, block] = [dim(dqkv, 0), kernel.constant("BLOCK")];
      const programs = cdiv(dim(dqueries, 1), block) + cdiv(dim(dkeys, 1), block) + 1;
      gpu.launch(kernel, [M, programs], { dqkv, dqueries, dkeys, dshared, S: dim(dshared, 1), ...named(of) });
    },
  },
);

/** The first features of each head: from c[M, Q F], to c[M, Q T]; with more features than `from` has the others are 0. */
export const headsNarrow = op<{ from: Tensor; to: Tensor; heads: number }>(
  "heads_narrow",
  { from: "c M A", to: "c M B" },
  {
    cpu: ({ from, to, heads }) => c.heads_narrow(from.ptr, to.ptr, dim(to, 0), heads, dim(from, 1) / heads, dim(to, 1) / heads),
    cuda: ({ from, to, heads }, gpu) => {
      const kernel = gpu.kernel("heads_narrow");
      const grid = [dim(to, 0), cdiv(dim(to, 1), kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { from_rows: from, to_rows: to, heads, F: dim(from, 1) / heads, T: dim(to, 1) / heads });
    },
  },
);
