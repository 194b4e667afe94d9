// What VeRA (Kopiczko et al. 2024) does around a step: the factors of its low-rank products, and the gradients of its vectors.

import { F, I, native, P, U } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { floats, ints } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { MOST_RANK } from "../methods/layout.ts";
import { F32, partOf } from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

const c = native({
  vera_expand: { args: [P, P, I, I, I, I, U, F], returns: "void" },
  vera_reduce: { args: [P, P, I, I, I, I, U, F], returns: "void" },
});

type Projected = {
  readonly side: "a" | "b";
  readonly vector: Tensor;
  readonly ranks: Tensor;
  readonly firstColumn: readonly number[];
  readonly which: Tensor;
  readonly projection: Tensor;
};
const shared = { vector: "f32 L V", ranks: "i32 L G", which: "i32 L", projection: "i32 L 5" };

/** A linear of an adapter at a time. */
function each(of: Tensor, args: Projected, apply: typeof c.vera_expand): void {
  const { side, vector, ranks, firstColumn, which, projection } = args;
  const linears = dim(ranks, 1);
  const [padded, ld] = [dim(of, 1) / linears, dim(of, 2)];
  for (const [slot, is] of ints(which).entries()) {
    const [keyA, keyB, width] = ints(projection).subarray(slot * 5);
    const [boundA, boundB] = floats(projection).subarray(slot * 5 + 3);
    for (let g = 0; g < linears; g++) {
      const rank = ints(ranks)[slot * linears + g]!;
      if (is === 0 || rank === 0) continue;
      const first = side === "a" ? g * padded : firstColumn[g]!;
      const sizes = side === "a" ? ([rank, ld, ld, width!] as const) : ([firstColumn[g + 1]! - first, rank, ld, rank] as const);
      const [key, bound] = side === "a" ? [keyA!, boundA!] : [keyB!, boundB!];
      const at = side === "a" ? g * MOST_RANK : first;
      const from = vector.ptr + (slot * (vector.stride ?? dim(vector, 1)) + at) * F32;
      apply(partOf(of, slot, first).ptr, from, ...sizes, key >>> 0, bound);
    }
  }
}

/** A linear of all adapters at a time. */
function launch(gpu: Launcher, name: "vera_expand" | "vera_reduce", of: Tensor, args: Projected): void {
  const { side, vector, ranks, firstColumn, which, projection } = args;
  const kernel = gpu.kernel(name, { SIDE: side === "a" ? 0 : 1 });
  const [L, G, ld] = [dim(ranks, 0), dim(ranks, 1), dim(of, 2)];
  const tensor = name === "vera_expand" ? "factor" : "grad";
  for (let g = 0; g < G; g++) {
    const padded = dim(of, 1) / G;
    const column = firstColumn[g]!;
    const [first, rows, at] =
      side === "a" ? [g * padded, padded, g * MOST_RANK] : [column, firstColumn[g + 1]! - column, column];
    const columns = name === "vera_expand" ? cdiv(ld, kernel.constant("BJ")) : 1;
    gpu.launch(kernel, [L, cdiv(rows, kernel.constant("BI")), columns], {
      [tensor]: { ...of, ptr: of.ptr + first * ld * bytesOf(of.dtype) },
      [`${tensor}_stride`]: strideOf(of),
      vector: { ...vector, ptr: vector.ptr + at * 4 },
      ...{ ranks, which, projection, vector_stride: vector.stride ?? dim(vector, 1), g, G, rows, ld },
    });
  }
}

/**
 * VeRA's factors of the adapters l whose `which` i32[L] is not 0: factor[l, i, j] = vector[l, i] draw(i, j) where rank says
 * that there is something, all else is left as it is. Side a: factor c[L, G R, K], row i = g R + r for r below ranks[l, g],
 * draw = element r width + j of key A and bound A; side b: factor c[L, N, R], columns j below ranks[l, g], draw = element n
 * rank + j of key B and bound B, n the row within its linear. projection i32[L, 5]: keys A and B, width, the bits of bounds A
 * and B (f32); element i is ((mix(key ^ i) >> 8) 2^-23 - 1) bound. vector f32[L, G 256] (side a: that of linear g begins at
 * 256 g) or f32[L, N], L strided as factor is.
 */
export const veraExpand = op<Projected & { factor: Tensor }>(
  "vera_expand",
  { factor: "c L S C", ...shared },
  {
    cpu: (args) => each(args.factor, args, c.vera_expand),
    cuda: (args, gpu) => launch(gpu, "vera_expand", args.factor, args),
  },
);

/**
 * vector[l, i] += sum over j of grad[l, i, j] draw(i, j), of the same elements, and these become 0. grad as factor, in f32.
 */
export const veraReduce = op<Projected & { grad: Tensor }>(
  "vera_reduce",
  { grad: "f32 L S C", ...shared },
  {
    cpu: (args) => each(args.grad, args, c.vera_reduce),
    cuda: (args, gpu) => launch(gpu, "vera_reduce", args.grad, args),
  },
);
