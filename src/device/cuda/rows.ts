// Launches of the memory-bound kernels: embed, pool, rmsnorm, rope, swiglu, xent, adamw and fill of kernels/triton.

import { bytesOf } from "../../base/dtype.ts";
import { invariant } from "../../base/errors.ts";
import { sizeOf } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import { cdiv, dim, flag, type Implementations, type Launcher } from "./launcher.ts";
import type { Choice, Variant } from "./variants.ts";

type Family =
  | "embed_forward"
  | "rows_gather"
  | "rows_scatter"
  | "pool_forward"
  | "pool_backward"
  | "rmsnorm_forward"
  | "rmsnorm_backward"
  | "rope_forward"
  | "rope_backward"
  | "geglu_forward"
  | "geglu_backward"
  | "swiglu_forward"
  | "swiglu_backward"
  | "xent"
  | "grad_norm"
  | "adamw_step"
  | "random_fill";

export function rowFamilies(gpu: Launcher): Pick<Implementations, Family> {
  /** Copies of bits, in words of 4 bytes: for every element type. */
  const gather = (x: Tensor, rows: Tensor, y: Tensor) => {
    const kernel = gpu.kernel("rows_gather");
    const W = words(y);
    gpu.launch(kernel, [dim(y, 0), cdiv(W, kernel.constant("BLOCK"))], { x, rows, y, W });
  };
  /** The variant whose block holds a row of H. */
  const norm = (name: string, H: number, choice: Choice = {}): Variant => {
    const found = gpu.variants(name, choice).find((kernel) => kernel.constant("BLOCK") >= H);
    invariant(found, `${name} has no variant for rows of ${H}`);
    return found;
  };
  const heads = (name: string, D: number, NORM: 0 | 1): Variant => {
    const variants = gpu.variants(name, { NORM });
    const exact = variants.find((kernel) => kernel.constant("EXACT") === 1 && kernel.constant("HALF") === D / 2);
    const found = exact ?? variants.find((kernel) => kernel.constant("EXACT") === 0 && kernel.constant("HALF") >= D / 2);
    invariant(found, `${name} has no variant for heads of ${D}`);
    return found;
  };

  return {
    embed_forward: ({ ids, table, x }) => gather(table, ids, x),
    rows_gather: ({ x, rows, y }) => gather(x, rows, y),
    rows_scatter: ({ dy, rows, dx }) => {
      const kernel = gpu.kernel("rows_scatter");
      const W = words(dy);
      gpu.launch(kernel, [dim(dy, 0), cdiv(W, kernel.constant("BLOCK"))], { dy, rows, dx, W });
    },

    pool_forward: ({ x, bounds, y }) => {
      const kernel = gpu.kernel("pool_forward");
      const [P, H] = [dim(y, 0), dim(y, 1)];
      gpu.launch(kernel, [P, cdiv(H, kernel.constant("BLOCK"))], { x, bounds, y, H });
    },
    pool_backward: ({ dy, bounds, dx }) => {
      const kernel = gpu.kernel("pool_backward");
      const [P, H] = [dim(dy, 0), dim(dy, 1)];
      gpu.launch(kernel, [P, cdiv(H, kernel.constant("BLOCK"))], { dy, bounds, dx, H });
    },

    rmsnorm_forward: ({ x, weight, residual, y, rstd, eps }) => {
      const [M, H] = [dim(x, 0), dim(x, 1)];
      const kernel = norm("rmsnorm_forward", H, { RESIDUAL: flag(residual) });
      gpu.launch(kernel, [M], { x, weight, residual, y, rstd, H, eps });
    },
    rmsnorm_backward: ({ dy, x, weight, rstd, residual, dx }) => {
      const [M, H] = [dim(x, 0), dim(x, 1)];
      const kernel = norm("rmsnorm_backward", H, { RESIDUAL: flag(residual) });
      gpu.launch(kernel, [M], { dy, x, weight, rstd, residual, dx, H });
    },

    rope_forward: ({ qkv, positions, cos, sin, qWeight, kWeight, out, eps, ...of }) => {
      const kernel = heads("rope_forward", of.headDim, flag(qWeight));
      const touched = of.heads + of.kvHeads * (out.ptr === qkv.ptr ? 1 : 2);
      gpu.launch(kernel, [dim(qkv, 0), cdiv(touched, kernel.constant("HEADS"))], {
        ...{ qkv, positions, cos, sin, q_weight: qWeight, k_weight: kWeight, out, touched, eps },
        ...{ heads: of.heads, kv_heads: of.kvHeads, D: of.headDim },
      });
    },
    rope_backward: ({ dqkv, positions, cos, sin, qkv, qWeight, kWeight, eps, ...of }) => {
      const kernel = heads("rope_backward", of.headDim, flag(qWeight));
      gpu.launch(kernel, [dim(dqkv, 0), cdiv(of.heads + of.kvHeads, kernel.constant("HEADS"))], {
        ...{ dqkv, positions, cos, sin, qkv, q_weight: qWeight, k_weight: kWeight, eps },
        ...{ heads: of.heads, kv_heads: of.kvHeads, D: of.headDim },
      });
    },

    geglu_forward: ({ gate, up, h }) => {
      const kernel = gpu.kernel("geglu_forward");
      const [M, I] = [dim(h, 0), dim(h, 1)];
      gpu.launch(kernel, [M, cdiv(I, kernel.constant("BLOCK"))], {
        ...{ gate, up, h, I, gate_stride: gate.stride ?? I, up_stride: up.stride ?? I },
      });
    },
    geglu_backward: ({ dh, gate, up, dgate, dup }) => {
      const kernel = gpu.kernel("geglu_backward", { UP: flag(dup) });
      const [M, I] = [dim(dh, 0), dim(dh, 1)];
      gpu.launch(kernel, [M, cdiv(I, kernel.constant("BLOCK"))], {
        ...{ dh, gate, up, dgate, dup, I, gate_stride: gate.stride ?? I, up_stride: up.stride ?? I },
        ...{ dgate_stride: dgate.stride ?? I, dup_stride: dup?.stride ?? I },
      });
    },
    swiglu_forward: ({ gateUp, h }) => {
      const kernel = gpu.kernel("swiglu_forward");
      const [M, I] = [dim(h, 0), dim(h, 1)];
      gpu.launch(kernel, [M, cdiv(I, kernel.constant("BLOCK"))], { gate_up: gateUp, h, I });
    },
    swiglu_backward: ({ dh, gateUp, dgateUp }) => {
      const kernel = gpu.kernel("swiglu_backward");
      const [M, I] = [dim(dh, 0), dim(dh, 1)];
      gpu.launch(kernel, [M, cdiv(I, kernel.constant("BLOCK"))], { dh, gate_up: gateUp, dgate_up: dgateUp, I });
    },

    xent: ({ logits, classes, targets, weights, loss, isCorrect, grad }) => {
      const [T, V] = [dim(logits, 0), dim(logits, 1)];
      gpu.launch(gpu.kernel("xent"), [T], { logits, targets, weights, loss, hit: isCorrect, V, classes, grad });
    },

    grad_norm: ({ grads, tensors, squares }) => {
      const [L, P, S] = [dim(grads, 0), dim(grads, 1), dim(tensors, 0)];
      const kernel = gpu.kernel("grad_norm");
      const slices = kernel.constant("SLICES");
      const part = gpu.scratch(L * S * slices * 4);
      gpu.launch(kernel, [slices, S, L], { grads, tensors, part, P });
      const add = gpu.kernel("grad_norm_sum");
      gpu.launch(add, [cdiv(L * S, add.constant("BLOCK"))], { part, squares, size: L * S });
    },
    adamw_step: ({ params, grads, m, v, copy, factors, table }) => {
      const [L, P] = [dim(params, 0), dim(params, 1)];
      const kernel = gpu.kernel("adamw_step", { COPY: flag(copy) });
      gpu.launch(kernel, [cdiv(P, kernel.constant("BLOCK")), L], { params, grads, m, v, copy, factors, table, P });
    },

    random_fill: ({ out, seed, scale }) => {
      const kernel = gpu.kernel("random_fill");
      const size = sizeOf(out.shape);
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { out, size, seed: seed | 0, scale });
    },
  };
}

/** Words of 4 bytes in a row. */
const words = (t: Tensor): number => (dim(t, 1) * bytesOf(t.dtype)) / 4;
