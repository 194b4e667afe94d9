// What VeRA (Kopiczko et al. 2024) does around a target group: the factors of its low-rank products, and the gradients of its
// vectors.

import { F, I, native, P, U } from "../../ffi/native.ts";
import { addressesIn, floats, ints, rowsOfInts } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { A, A_GRADIENT, B, B_GRADIENT, columnsIn } from "./linear/low-rank.ts";
import { dim, op, strideOf } from "./op.ts";

const c = native({
  vera_expand: { args: [P, P, I, I, I, I, U, F], returns: "void" },
  vera_reduce: { args: [P, P, I, I, I, I, U, F], returns: "void" },
});

/** Programs of an adapter: each takes blocks of the factor in turn. */
const PROGRAMS = 64;

type Projected = {
  readonly side: "a" | "b";
  readonly factors: Tensor;
  readonly vectors: Tensor;
  readonly ranks: Tensor;
  readonly firstColumn: readonly number[];
  /** K */
  readonly width: number;
  readonly which: Tensor;
  readonly projection: Tensor;
};
const SPECS = {
  factors: "i64 L G 4",
  vectors: "i64 L G 4",
  ranks: "i32 L G",
  which: "i32 L",
  projection: "i32 L 5",
};

/** Where in `factors` and in `vectors` a side has its factor and its vector, or their gradients. */
const placesOf = (side: "a" | "b", isGradient: boolean): readonly [factor: number, vector: number] =>
  side === "a" ? (isGradient ? [A_GRADIENT, 1] : [A, 0]) : isGradient ? [B_GRADIENT, 3] : [B, 2];

/** A linear of an adapter at a time. */
function each(args: Projected, isGradient: boolean, apply: typeof c.vera_expand): void {
  const { side, firstColumn, which, projection, width } = args;
  const [factor, vector, ranks] = [addressesIn(args.factors), addressesIn(args.vectors), rowsOfInts(args.ranks)];
  const [ofFactor, ofVector] = placesOf(side, isGradient);
  for (const [slot, is] of ints(which).entries()) {
    const [keyA, keyB, widest] = ints(projection).subarray(slot * 5);
    const [boundA, boundB] = floats(projection).subarray(slot * 5 + 3);
    for (const [g, rank] of ranks(slot).entries()) {
      if (is === 0 || rank === 0) continue;
      const [key, bound] = side === "a" ? [keyA!, boundA!] : [keyB!, boundB!];
      const [columns, stride] = side === "a" ? [width, widest!] : [columnsIn(firstColumn, g)[1], rank];
      const isB = side === "b" ? 1 : 0;
      apply(factor(slot, g, ofFactor), vector(slot, g, ofVector), rank, columns, stride, isB, key >>> 0, bound);
    }
  }
}

/** A linear of all adapters at a time. */
function launch(gpu: Launcher, name: "vera_expand" | "vera_reduce", args: Projected): void {
  const { side, factors, vectors, ranks, firstColumn, which, projection, width } = args;
  const kernel = gpu.kernel(name, { SIDE: side === "a" ? 0 : 1 });
  const strides = { factors_stride: strideOf(factors), vectors_stride: strideOf(vectors), ranks_stride: strideOf(ranks) };
  const [L, G] = [dim(ranks, 0), dim(ranks, 1)];
  for (let g = 0; g < G; g++) {
    const columns = side === "a" ? width : columnsIn(firstColumn, g)[1];
    gpu.launch(kernel, [L, PROGRAMS], { factors, vectors, ranks, which, projection, ...strides, g, columns });
  }
}

/**
 * VeRA's factors of the adapters l whose `which` i32[L] is not 0. Side a: A[r, k] = d[r] draw(r width + k) of key A and bound
 * A; side b: B[n, r], which is held transposed, = b[n] draw(n rank + r) of key B and bound B, n the row within its linear.
 * projection i32[L, 5]: keys A and B, width, the bits of bounds A and B (f32); element i is ((mix(key ^ i) >> 8) 2^-23 - 1)
 * bound. `vectors` are those of d, its gradient, b, its gradient.
 */
export const veraExpand = op<Projected>("vera_expand", SPECS, {
  cpu: (args) => each(args, false, c.vera_expand),
  cuda: (args, gpu) => launch(gpu, "vera_expand", args),
});

/**
 * The gradient of d[r] += the sum over k of A's gradient times draw, that of b[n] += the sum over r of B's times draw, of the
 * same elements, and these become 0.
 */
export const veraReduce = op<Projected>("vera_reduce", SPECS, {
  cpu: (args) => each(args, true, c.vera_reduce),
  cuda: (args, gpu) => launch(gpu, "vera_reduce", args),
});
