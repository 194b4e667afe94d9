// Heads of q that each have a gate after them, next to k and v: gated c[M, 2 (Q + C) D], Q pairs of q and gate, then C heads of
// k, then of v (Qwen 3.5).

import { I, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import type { Heads } from "./attention.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  heads_split: { args: [P, P, I, I, I, I], returns: "void" },
  heads_join: { args: [P, P, I, I, I, I], returns: "void" },
  heads_gate: { args: [P, P, P, I, I, I, I], returns: "void" },
  heads_gate_backward: { args: [P, P, P, P, I, I, I, I], returns: "void" },
});

const known = ({ heads, kvHeads, headDim: D }: Heads) => ({
  G: (heads + kvHeads) * D,
  W: (heads + 2 * kvHeads) * D,
  O: heads * D,
});

/** y c[M, (Q + 2C) D] = q, k and v without the gates. */
export const headsSplit = op<Heads & { gated: Tensor; y: Tensor }>(
  "heads_split",
  { gated: "c M 2G", y: "c M W" },
  {
    known,
    cpu: ({ gated, y, heads, kvHeads, headDim }) => c.heads_split(gated.ptr, y.ptr, dim(y, 0), heads, kvHeads, headDim),
    cuda: ({ gated, y, heads, kvHeads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("heads_split");
      const grid = [dim(y, 0), cdiv(dim(y, 1), kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { gated, y, heads, kv_heads: kvHeads, D });
    },
  },
);

/** The gradient of headsSplit: dgated has it in the columns of q, k and v; those of the gates stay as they are. */
export const headsJoin = op<Heads & { dy: Tensor; dgated: Tensor }>(
  "heads_join",
  { dy: "c M W", dgated: "c M 2G" },
  {
    known,
    cpu: ({ dy, dgated, heads, kvHeads, headDim }) => c.heads_join(dy.ptr, dgated.ptr, dim(dy, 0), heads, kvHeads, headDim),
    cuda: ({ dy, dgated, heads, kvHeads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("heads_join");
      const grid = [dim(dy, 0), cdiv(dim(dy, 1), kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { dy, dgated, heads, kv_heads: kvHeads, D });
    },
  },
);

/** y = x sigmoid(gate), head by head: x, y c[M, Q D]. */
export const headsGate = op<Heads & { x: Tensor; gated: Tensor; y: Tensor }>(
  "heads_gate",
  { x: "c M O", gated: "c M 2G", y: "c M O" },
  {
    known,
    cpu: ({ x, gated, y, heads, kvHeads, headDim }) =>
      c.heads_gate(x.ptr, gated.ptr, y.ptr, dim(x, 0), heads, kvHeads, headDim),
    cuda: ({ x, gated, y, heads, kvHeads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("heads_gate");
      const grid = [dim(x, 0), cdiv(heads * D, kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { x, gated, y, heads, kv_heads: kvHeads, D });
    },
  },
);

/** dx c[M, Q D] from dy, which it may be; in `gated` the gradients of the gates take their place. */
export const headsGateBackward = op<Heads & { dy: Tensor; x: Tensor; gated: Tensor; dx: Tensor }>(
  "heads_gate_backward",
  { dy: "c M O", x: "c M O", gated: "c M 2G", dx: "c M O" },
  {
    known,
    cpu: ({ dy, x, gated, dx, heads, kvHeads, headDim }) =>
      c.heads_gate_backward(dy.ptr, x.ptr, gated.ptr, dx.ptr, dim(x, 0), heads, kvHeads, headDim),
    cuda: ({ dy, x, gated, dx, heads, kvHeads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("heads_gate_backward");
      const grid = [dim(x, 0), cdiv(heads * D, kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { dy, x, gated, dx, heads, kv_heads: kvHeads, D });
    },
  },
);
