// Launches of kernels/triton/vera.py: VeRA's factors, and the gradients of its vectors, a linear at a time.

import { MOST_RANK } from "../../methods/layout.ts";
import type { Tensor } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import { cdiv, dim, type Launcher, strideOf } from "./launcher.ts";

type Family = "vera_expand" | "vera_reduce";

export function veraFamily(gpu: Launcher): { readonly [K in Family]: (args: Kernels[K]) => void } {
  const launch = (name: Family, of: Tensor, args: Kernels["vera_expand"] | Kernels["vera_reduce"]): void => {
    const { side, vector, ranks, firstColumn, which, projection } = args;
    const kernel = gpu.kernel(name, { SIDE: side === "a" ? 0 : 1 });
    const [L, G, ld] = [dim(ranks, 0), dim(ranks, 1), dim(of, 2)];
    const strides = { [name === "vera_expand" ? "factor_stride" : "grad_stride"]: strideOf(of) };
    for (let g = 0; g < G; g++) {
      const padded = dim(of, 1) / G;
      const column = firstColumn[g]!;
      const [first, rows, at] =
        side === "a" ? [g * padded, padded, g * MOST_RANK] : [column, firstColumn[g + 1]! - column, column];
      const bytes = of.dtype === "f32" ? 4 : 2;
      const grid = [
        L,
        cdiv(rows, kernel.constant("BI")),
        name === "vera_expand" ? cdiv(ld, kernel.constant("BJ")) : 1,
      ] as const;
      gpu.launch(kernel, grid, {
        [name === "vera_expand" ? "factor" : "grad"]: { ...of, ptr: of.ptr + first * ld * bytes },
        vector: { ...vector, ptr: vector.ptr + at * 4 },
        ...{ ranks, which, projection, ...strides, vector_stride: vector.stride ?? dim(vector, 1), g, G, rows, ld },
      });
    }
  };
  return {
    vera_expand: (args) => launch("vera_expand", args.factor, args),
    vera_reduce: (args) => launch("vera_reduce", args.grad, args),
  };
}
