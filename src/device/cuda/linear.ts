// Launches of kernels/triton/linear.py and lora.py: the frozen linear with its low-rank products, and their gradients.

import { sum } from "../../base/shape.ts";
import type { Tensor } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import { fp8Backward, fp8Forward, isFp8 } from "./fp8.ts";
import { cdiv, dim, flag, type Launcher, strideOf } from "./launcher.ts";
import { denseOf } from "./packed.ts";

type Family = "linear_forward" | "linear_backward" | "lora_down" | "lora_up_grad" | "lora_down_grad";

const ROW_TILE = 128;

/** G of `s` [M, G R], where R is the padded rank. */
export const shapeOf = (s: Tensor, groups: number) => ({ G: groups, R: dim(s, 1) / groups });

/** Where the second and the third linear of a group begin; N where there is none. */
export const boundaries = (firstColumn: readonly number[]) => {
  const N = firstColumn.at(-1)!;
  const [, first1 = N, first2 = N] = firstColumn;
  return { first1, first2 };
};

/** The most chunks of `chunk` tiles that a batch can have, each adapter's tiles being cut on their own. */
const mostChunks = (tiles: number, adapters: number, chunk: number): number =>
  Math.floor((tiles + Math.min(adapters, tiles) * (chunk - 1)) / chunk);

export function linearFamily(gpu: Launcher): { readonly [K in Family]: (args: Kernels[K]) => void } {
  return {
    lora_down: ({ x, a, s, ranks, tileAdapter, rowNumber, dropout, module }) => {
      const [M, K, S] = [dim(x, 0), dim(x, 1), dim(s, 1)];
      const kernel = gpu.kernel("lora_down", shapeOf(s, dim(ranks, 1)));
      const [BM, BK, CB] = [kernel.constant("BM"), kernel.constant("BK"), kernel.constant("CB")];
      const partBlocks = cdiv(kernel.constant("PART"), BK);
      const parts = cdiv(cdiv(K, BK), partBlocks);
      const scratch = parts > 1 ? gpu.scratch(parts * M * S * 4) : null;
      gpu.launch(kernel, [M / BM, parts, cdiv(S, CB)], {
        ...{ x, a, s, scratch, ranks, tile_adapter: tileAdapter, row_number: rowNumber, dropout, module },
        ...{ a_stride: strideOf(a), M, K, part_blocks: partBlocks },
      });
      if (parts === 1) return;
      const add = gpu.kernel("lora_down_sum");
      gpu.launch(add, [cdiv(M * S, add.constant("BLOCK"))], { s, scratch, parts, size: M * S });
    },

    linear_forward: ({ x, weight, bias, residual, y, lora }) => {
      if (isFp8(weight)) return fp8Forward(gpu, { x, weight, bias, residual, y, lora });
      const w = denseOf(gpu, weight);
      const [M, K, N] = [dim(x, 0), dim(x, 1), dim(w, 0)];
      const options = { BIAS: flag(bias), RESIDUAL: flag(residual) };
      const { first1, first2 } = boundaries(lora?.firstColumn ?? [0, N]);
      const kernel = forwardVariant(gpu, "linear_forward", lora, options, first1, first2);
      gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, N), {
        ...{ x, w, y, bias, residual, M, N, K, first1, first2 },
        ...{ s: lora?.s ?? null, b: lora?.b ?? null, scale: lora?.scale ?? null, ranks: lora?.ranks ?? null },
        ...{ tile_adapter: lora?.tileAdapter ?? null, b_stride: lora ? strideOf(lora.b) : 0 },
      });
    },

    lora_up_grad: ({ dy, s, b, scale, firstColumn, ds, db, ranks, tileAdapter }) => {
      const [M, N, L, S] = [dim(dy, 0), dim(dy, 1), dim(b, 0), dim(s, 1)];
      const { G, R } = shapeOf(s, dim(ranks, 1));
      const tiles = M / ROW_TILE;
      const kernel = gpu.kernel("lora_up_grad", { G, R });
      const [RB, BN, CHUNK] = [kernel.constant("RB"), kernel.constant("BN"), kernel.constant("CHUNK")];
      const { first1, first2 } = boundaries(firstColumn);
      const blocks = sum(firstColumn.slice(1).map((last, g) => cdiv(last - firstColumn[g]!, BN)));
      const dsBytes = blocks * M * R * 4;
      const ds_part = gpu.scratch(dsBytes + cdiv(tiles, CHUNK) * N * R * 4);
      const shared = { db, ds_part, db_part: ds_part + dsBytes, scale, ranks, tile_adapter: tileAdapter };
      const sizes = { db_stride: strideOf(db), M, N, first1, first2 };
      gpu.launch(kernel, [blocks, mostChunks(tiles, L, CHUNK), R / RB], {
        dy,
        s,
        b,
        b_stride: strideOf(b),
        ...shared,
        ...sizes,
      });
      const add = gpu.kernel("lora_up_grad_sum", { G, R });
      const later = tiles > CHUNK ? L * cdiv(N * R, add.constant("BLOCK")) : 0;
      gpu.launch(add, [(M / add.constant("ROWS")) * ((S / RB) | 0) + later], { ds, ...shared, ...sizes });
    },

    linear_backward: ({ dy, weight, dx, lora }) => {
      if (isFp8(weight)) return fp8Backward(gpu, { dy, weight, dx, lora });
      const w = denseOf(gpu, weight);
      const [M, N, K] = [dim(dy, 0), dim(dy, 1), dim(w, 1)];
      const kernel = gpu.kernel("linear_backward", lora ? { ...shapeOf(lora.ds, dim(lora.ranks, 1)), LORA: 1 } : { LORA: 0 });
      gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, K), {
        ...{ dy, w, dx, M, N, K, ds: lora?.ds ?? null, a: lora?.a ?? null, ranks: lora?.ranks ?? null },
        ...{ tile_adapter: lora?.tileAdapter ?? null, row_number: lora?.rowNumber ?? null, dropout: lora?.dropout ?? null },
        ...{ module: lora?.module ?? 0, a_stride: lora ? strideOf(lora.a) : 0 },
      });
    },

    lora_down_grad: ({ x, ds, da, ranks, tileAdapter, rowNumber, dropout, module }) => {
      const [M, K, L, S] = [dim(x, 0), dim(x, 1), dim(da, 0), dim(ds, 1)];
      const choice = shapeOf(ds, dim(ranks, 1));
      const tiles = M / ROW_TILE;
      const kernel = gpu.kernel("lora_down_grad", choice);
      const [BK, CB, CHUNK] = [kernel.constant("BK"), kernel.constant("CB"), kernel.constant("CHUNK")];
      const scratch = gpu.scratch(cdiv(tiles, CHUNK) * S * K * 4);
      const shared = { da, scratch, ranks, tile_adapter: tileAdapter, da_stride: strideOf(da), M, K };
      gpu.launch(kernel, [cdiv(K, BK), mostChunks(tiles, L, CHUNK), cdiv(S, CB)], {
        ...{ x, ds, row_number: rowNumber, dropout, module, ...shared },
      });
      const add = gpu.kernel("lora_down_grad_sum", choice);
      if (tiles <= CHUNK) return;
      gpu.launch(add, [L, cdiv(S * K, add.constant("BLOCK"))], shared);
    },
  };
}

/** One persistent program for each multiprocessor, or for each tile where there are fewer. */
export const productGrid = (gpu: Launcher, BM: number, BN: number, rows: number, columns: number) =>
  [Math.min(gpu.multiprocessors, cdiv(rows, BM) * cdiv(columns, BN))] as const;

/** WHOLE: each half of a tile of the product belongs to one linear, so that its low-rank product is made once. */
export function forwardVariant(
  gpu: Launcher,
  name: "linear_forward" | "fp8_forward",
  lora: Kernels["linear_forward"]["lora"],
  options: Readonly<Record<string, number>>,
  first1: number,
  first2: number,
) {
  if (!lora) return gpu.kernel(name, { ...options, LORA: 0 });
  const choice = { ...shapeOf(lora.s, dim(lora.ranks, 1)), ...options, LORA: 1 };
  if (choice.G === 1) return gpu.kernel(name, { ...choice, WHOLE: 1 });
  const half = gpu.variants(name, choice)[0]!.constant("BN") / 2;
  const whole = gpu.hasWhole && first1 % half === 0 && first2 % half === 0;
  return gpu.kernel(name, { ...choice, WHOLE: whole ? 1 : 0 });
}
