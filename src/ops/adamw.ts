// AdamW (Loshchilov and Hutter 2019) or SGD of all adapters in one launch, with each adapter's own rate, step and clipping.

import { F, I, L, native, P } from "../../ffi/native.ts";
import { floats, ints } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  grad_norm: { args: [P, I, I], returns: F },
  adamw_step: { args: [P, P, P, P, L, P, P], returns: "void" },
});

/** Numbers of an adapter's row in the table of adamw_step. */
export const ADAMW_TABLE_WIDTH = 11;

/**
 * squares f32[L, S] = the sum of squares of each of the S tensors of each adapter's gradients f32[L, P]. tensors i32[S, 3] =
 * first element within the adapter's block, rows, columns. Rows and columns of zeros must not change a bit of the sum, since
 * the padded rank depends on the other adapters: each SIMD lane adds whole rows (or every LANES-th column), and all are
 * combined last.
 */
export const gradNorm = op<{ grads: Tensor; tensors: Tensor; squares: Tensor }>(
  "grad_norm",
  { grads: "f32 L P", tensors: "i32 S 3", squares: "f32 L S" },
  {
    cpu: ({ grads, tensors, squares }) => {
      const table = ints(tensors);
      const count = dim(tensors, 0);
      const sums = floats(squares);
      for (let i = 0; i < sums.length; i++) {
        const [offset, rows, columns] = table.subarray((i % count) * 3);
        const block = grads.ptr + Math.floor(i / count) * dim(grads, 1) * 4;
        sums[i] = c.grad_norm(block + offset! * 4, rows!, columns!);
      }
    },
    cuda: ({ grads, tensors, squares }, gpu) => {
      const [adapters, elements, count] = [dim(grads, 0), dim(grads, 1), dim(tensors, 0)];
      const kernel = gpu.kernel("grad_norm");
      const slices = kernel.constant("SLICES");
      const part = gpu.scratch(adapters * count * slices * 4);
      gpu.launch(kernel, [slices, count, adapters], { grads, tensors, part, P: elements });
      const add = gpu.kernel("grad_norm_sum");
      const size = adapters * count;
      gpu.launch(add, [cdiv(size, add.constant("BLOCK"))], { part, squares, size });
    },
  },
);

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
    params: "f32 L P",
    grads: "f32 L P",
    m: "f32 L P",
    v: "f32 L P",
    copy: "bf16 L P",
    factors: "i32 F",
    table: `f32 L ${ADAMW_TABLE_WIDTH}`,
  },
  {
    cpu: ({ params, grads, m, v, factors, table }) => {
      const [adapters, count, width] = [dim(params, 0), dim(params, 1), dim(table, 1)];
      const rows = floats(table);
      for (let i = 0; i < adapters; i++) {
        const at = i * count * 4;
        if (rows[i * width] !== 0)
          c.adamw_step(params.ptr + at, grads.ptr + at, m.ptr + at, v.ptr + at, count, factors.ptr, table.ptr + i * width * 4);
      }
    },
    cuda: ({ params, grads, m, v, copy, factors, table }, gpu) => {
      const [adapters, count] = [dim(params, 0), dim(params, 1)];
      const kernel = gpu.kernel("adamw_step", { COPY: flag(copy) });
      const grid = [cdiv(count, kernel.constant("BLOCK")), adapters] as const;
      gpu.launch(kernel, grid, { params, grads, m, v, copy, factors, table, P: count });
    },
  },
);
