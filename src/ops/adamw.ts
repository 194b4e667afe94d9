// AdamW (Loshchilov and Hutter 2019) or SGD of one adapter, with its own rate, step and clipping.

import { F, I, L, native, P } from "../../ffi/native.ts";
import { floats, ints } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { ALIGN } from "../methods/layout.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  grad_norm: { args: [P, I, I], returns: F },
  adamw_step: { args: [P, P, P, P, L, P, P], returns: "void" },
});

/** Numbers of an adapter's row in the table of adamw_step. */
export const ADAMW_TABLE_WIDTH = 11;

/**
 * squares f32[S] = the sum of squares of each of the S tensors of an adapter's gradients f32[P]. tensors i32[S, 3] = first
 * element within the adapter's block in units of ALIGN, rows, columns.
 */
export const gradNorm = op<{ grads: Tensor; tensors: Tensor; squares: Tensor }>(
  "grad_norm",
  { grads: "f32 P", tensors: "i32 S 3", squares: "f32 S" },
  {
    cpu: ({ grads, tensors, squares }) => {
      const [table, sums] = [ints(tensors), floats(squares)];
      for (let i = 0; i < sums.length; i++) {
        const [offset, rows, columns] = table.subarray(i * 3);
        sums[i] = c.grad_norm(grads.ptr + offset! * ALIGN * 4, rows!, columns!);
      }
    },
    cuda: ({ grads, tensors, squares }, gpu) => {
      const count = dim(tensors, 0);
      const kernel = gpu.kernel("grad_norm");
      const slices = kernel.constant("SLICES");
      const part = gpu.scratch(count * slices * 4);
      gpu.launch(kernel, [slices, count], { grads, tensors, part });
      const add = gpu.kernel("grad_norm_sum");
      gpu.launch(add, [cdiv(count, add.constant("BLOCK"))], { part, squares, size: count });
    },
  },
);

/**
 * One step of an adapter, with its gradients multiplied by `coefficient` (clipping); then its gradients become 0. params,
 * grads, m, v f32[P]; copy bf16[P] or null: what the kernels read. table f32[11]:
 * 1, AdamW (Loshchilov and Hutter 2019, as PyTorch computes it): 1, learning rate, 1 - beta1, beta2, 1 - beta2, eps, weight
 * decay, 1 - beta1^t, 1 - beta2^t, coefficient, learning rate of B (LoRA+, Hayou et al. 2024); differences from 1 come from
 * doubles, since 1 - 0.999f is off by 1e-5. 2, SGD (as PyTorch computes it): 2, learning rate, momentum, nesterov (0 or 1),
 * -, -, weight decay, -, -, coefficient, learning rate of B; d = g + decay p, m = momentum m + d, p -= lr (nesterov ? d +
 * momentum m : m), and v stays as it is. 0: nothing is touched. factors i32[P / 128]: 1 where 128 elements of a block are of a
 * B, else 0.
 */
export const adamwStep = op<{
  params: Tensor;
  grads: Tensor;
  m: Tensor;
  v: Tensor;
  copy: Tensor | null;
  factors: Tensor;
  table: Tensor;
}>(
  "adamw_step",
  {
    params: "f32 P",
    grads: "f32 P",
    m: "f32 P",
    v: "f32 P",
    copy: "bf16 P",
    factors: "i32 F",
    table: `f32 ${ADAMW_TABLE_WIDTH}`,
  },
  {
    cpu: ({ params, grads, m, v, factors, table }) =>
      c.adamw_step(params.ptr, grads.ptr, m.ptr, v.ptr, dim(params, 0), factors.ptr, table.ptr),
    cuda: ({ params, grads, m, v, copy, factors, table }, gpu) => {
      const count = dim(params, 0);
      const kernel = gpu.kernel("adamw_step", { COPY: flag(copy) });
      const grid = [cdiv(count, kernel.constant("BLOCK"))] as const;
      gpu.launch(kernel, grid, { params, grads, m, v, copy, factors, table, P: count });
    },
  },
);
