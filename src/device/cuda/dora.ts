// Launches of kernels/triton/dora.py: the norms of DoRA's rows, and their lengths as factors.

import type { Kernels } from "../kernels.ts";
import { cdiv, dim, flag, type Launcher, strideOf } from "./launcher.ts";
import { denseOf } from "./packed.ts";

type Family = "dora_norm" | "dora_forward" | "dora_backward";

const ROW_TILE = 128;

export function doraFamily(gpu: Launcher): { readonly [K in Family]: (args: Kernels[K]) => void } {
  return {
    dora_norm: ({ weight, a, b, scale, ranks, firstColumn, m, gain, inverse, stale }) => {
      const w = denseOf(gpu, weight);
      const [N, K, L, G] = [dim(w, 0), dim(w, 1), dim(ranks, 0), dim(ranks, 1)];
      const kernel = gpu.kernel("dora_norm", { R: dim(b, 2) });
      const strides = { a_stride: strideOf(a), b_stride: strideOf(b), m_stride: m.stride ?? N };
      for (let g = 0; g < G; g++) {
        const [first, last] = [firstColumn[g]!, firstColumn[g + 1]!];
        gpu.launch(kernel, [L, cdiv(last - first, kernel.constant("BN"))], {
          ...{ w, a, b, scale, ranks, m, gain, inverse, stale, ...strides },
          ...{ g, G, first, last, N, K },
        });
      }
    },

    dora_forward: ({ z, bias, residual, gain, decomposed, y, tileAdapter }) => {
      const [M, N] = [dim(y, 0), dim(y, 1)];
      const kernel = gpu.kernel("dora_forward", { BIAS: flag(bias), RESIDUAL: flag(residual) });
      const grid = [M / kernel.constant("ROWS"), cdiv(N, kernel.constant("BN"))] as const;
      gpu.launch(kernel, grid, { z, bias, residual, gain, decomposed, y, tile_adapter: tileAdapter, N });
    },

    dora_backward: ({ dy, z, gain, inverse, decomposed, dm, tileAdapter }) => {
      const [M, N, L] = [dim(dy, 0), dim(dy, 1), dim(dm, 0)];
      const kernel = gpu.kernel("dora_backward");
      gpu.launch(kernel, [cdiv(N, kernel.constant("BN")), L + M / ROW_TILE], {
        ...{ dy, z, gain, inverse, decomposed, dm, tile_adapter: tileAdapter, dm_stride: dm.stride ?? N, L, M, N },
      });
    },
  };
}
