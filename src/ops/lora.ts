// The low-rank products that stand apart from the frozen one (LoRA, Hu et al. 2021): s = drop(x) A^T, and the gradients.
//
// With y = x W^T + scale s B^T:  ds = scale dy B,  dB = scale dy^T s,  dA = ds^T drop(x).

import { invariant } from "../base/errors.ts";
import { maxOf, sum } from "../base/shape.ts";
import { rowsOfFloats } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Choice, Variant } from "../device/cuda/variants.ts";
import type { Device, Tensor } from "../device/device.ts";
import { CUDA_ROW_TILE } from "../device/tile.ts";
import { RANK_TILE } from "../methods/layout.ts";
import {
  A,
  A_GRADIENT,
  ADAPTER_SPECS,
  type AdapterArgs,
  B,
  B_GRADIENT,
  boundaries,
  columnsIn,
  columnsOf,
  DROPOUT_SPECS,
  type DropoutArgs,
  eachSegment,
  holding,
  masked,
  rowsOf,
  tablesOf,
  widest,
} from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

/** The most chunks of `chunk` tiles that a batch can have, each adapter's tiles being cut on their own. */
const mostChunks = (tiles: number, adapters: number, chunk: number): number =>
  Math.floor((tiles + Math.min(adapters, tiles) * (chunk - 1)) / chunk);

/** Programs of a *_sum kernel for a tile, and for the later chunks of an adapter, at most. */
const [TILE_PROGRAMS, ADAPTER_PROGRAMS] = [64, 256];

const tilePrograms = (args: AdapterArgs, add: Variant): number =>
  Math.min(TILE_PROGRAMS, cdiv(CUDA_ROW_TILE * widest(args), add.constant("BLOCK")));

/** How many adapters can have later chunks, and programs for each of them; `across`: blocks of one of its rows. */
const adders = (args: AdapterArgs, tiles: number, chunk: number, across: number): readonly [number, number] => [
  Math.floor(tiles / (chunk + 1)),
  Math.min(ADAPTER_PROGRAMS, widest(args) * across),
];

/** Rows of the scratch for later chunks, as long as those of the gradient; kernels/triton/lora.py says which is whose. */
const laterRows = (elements: number, chunk: number): number => cdiv(elements, CUDA_ROW_TILE * chunk);

/** As many columns at once as a narrow adapter next to a wide one has; all alike may have more. */
function columnVariant(gpu: Launcher, name: "lora_down" | "lora_down_grad", args: AdapterArgs, choice: Choice = {}): Variant {
  const { least, most } = args.span;
  return holding(gpu.variants(name, choice), "CB", Math.min(widest(args), least === most ? 128 : 64));
}

/** s = drop(x) A^T: x c[M, K], s c[E]. */
export const loraDown = op<AdapterArgs & DropoutArgs & { x: Tensor; s: Tensor }>(
  "lora_down",
  { x: "c M K", s: "c E", ...ADAPTER_SPECS, ...DROPOUT_SPECS },
  {
    cpu: (args, host) => {
      const { x, s } = args;
      const width = dim(x, 1);
      eachSegment(host, args, dim(x, 0), (segment, targets) => {
        const input = masked(host, args, segment); // once for all linears of the group
        for (const { rank, low, matrix } of targets)
          host.product([segment.rows, rank, width], input, false, { ptr: matrix(A), ld: width }, true, low(s));
      });
    },
    cuda: (args, gpu) => {
      const { x, s, rowNumber, dropout, module } = args;
      const [M, K, E] = [dim(x, 0), dim(x, 1), dim(s, 0)];
      const kernel = columnVariant(gpu, "lora_down", args);
      const [BM, BK, CB] = [kernel.constant("BM"), kernel.constant("BK"), kernel.constant("CB")];
      const partBlocks = cdiv(kernel.constant("PART"), BK);
      const parts = cdiv(cdiv(K, BK), partBlocks);
      const scratch = parts > 1 ? gpu.scratch(parts * E * 4) : null;
      gpu.launch(kernel, [M / BM, parts, cdiv(widest(args), CB)], {
        ...{ x, s, scratch, row_number: rowNumber, dropout, module, ...tablesOf(args) },
        ...{ M, K, low_size: E, part_blocks: partBlocks },
      });
      if (parts === 1) return;
      const add = gpu.kernel("lora_down_sum");
      const grid = [M / CUDA_ROW_TILE, tilePrograms(args, add)] as const;
      gpu.launch(add, grid, { s, scratch, parts, low_size: E, ...tablesOf(args) });
    },
  },
);

/** In one read of dy c[M, N]: ds = scale dy B, ds c[E]; the gradient of B += scale dy^T s. */
export const loraUpGrad = op<
  AdapterArgs & { dy: Tensor; s: Tensor; scale: Tensor; firstColumn: readonly number[]; ds: Tensor }
>(
  "lora_up_grad",
  { dy: "c M N", s: "c E", scale: "f32 L G", ds: "c E", ...ADAPTER_SPECS },
  {
    cpu: (args, host) => {
      const { dy, s, ds } = args;
      const scales = rowsOfFloats(args.scale);
      eachSegment(host, args, dim(dy, 0), ({ row, rows, adapter }, targets) => {
        for (const { g, rank, low, matrix } of targets) {
          const [first, columns] = columnsIn(args.firstColumn, g);
          const scale = scales(adapter)[g]!;
          const dyRows = columnsOf(rowsOf(dy, row), first);
          host.product([rows, rank, columns], dyRows, false, { ptr: matrix(B), ld: columns }, true, low(ds), scale);
          const gradient = { ptr: matrix(B_GRADIENT), ld: columns };
          host.product([rank, columns, rows], low(s), true, dyRows, false, gradient, scale, 1);
        }
      });
    },
    cuda: (args, gpu) => {
      const { dy, s, ds, scale, firstColumn, span } = args;
      const [M, N, E, L] = [dim(dy, 0), dim(dy, 1), dim(s, 0), dim(args.ranks, 0)];
      const tiles = M / CUDA_ROW_TILE;
      // A block of 16 would read dy too often for a wide adapter, one of 64 make a narrow one wait for its registers.
      const ranks = span.least <= RANK_TILE && span.most > RANK_TILE ? 2 * RANK_TILE : span.most;
      const kernel = holding(gpu.variants("lora_up_grad"), "RB", ranks);
      const [RB, BN, CHUNK] = [kernel.constant("RB"), kernel.constant("BN"), kernel.constant("CHUNK")];
      const columns = firstColumn.slice(1).map((last, g) => last - firstColumn[g]!);
      const [blocks, pitch] = [columns.map((of) => cdiv(of, BN)), maxOf(columns)];
      const dsBytes = maxOf(blocks) * E * 4;
      const ds_part = gpu.scratch(dsBytes + laterRows(E, CHUNK) * pitch * 4);
      const shared = {
        ...{ ds_part, db_part: ds_part + dsBytes, scale, scale_stride: strideOf(scale), ...tablesOf(args) },
        ...{ M, N, ...boundaries(firstColumn), low_size: E, pitch },
      };
      gpu.launch(kernel, [sum(blocks), mostChunks(tiles, L, CHUNK), cdiv(span.most, RB)], { dy, s, ...shared });
      const add = gpu.kernel("lora_up_grad_sum");
      const ds_programs = tilePrograms(args, add);
      const [adapters, db_programs] = adders(args, tiles, CHUNK, cdiv(pitch, add.constant("DB_BLOCK")));
      const programs = tiles * ds_programs + adapters * db_programs;
      gpu.launch(add, [programs], { ds, ds_programs, db_programs, ...shared });
    },
  },
);

/**
 * x c[M, K], or what it was made of, where GPUs make it again as they read: of a norm (rmsnorm.ts) its input c[M, K], rstd
 * f32[M] and weight f32[K]; of a gated activation (swiglu.ts, geglu.ts) gate and up, c[M, 2 K].
 */
export type DownInput =
  | { readonly x: Tensor }
  | { readonly normOf: Tensor; readonly rstd: Tensor; readonly weight: Tensor }
  | { readonly act: "swiglu" | "geglu"; readonly gateUp: Tensor };

/** Whether a device's kernel takes what x was made of. */
export const makesInputs = ({ kind }: Pick<Device, "kind">): boolean => kind !== "cpu";

/** As lora_down_grad has it: which of them, and its tensors. */
function madeOf(input: DownInput) {
  if ("x" in input) return { MADE: 0, of: { x: input.x, rstd: null, weight: null }, K: dim(input.x, 1) };
  if ("normOf" in input) {
    const { normOf: x, rstd, weight } = input;
    return { MADE: 1, of: { x, rstd, weight }, K: dim(x, 1) };
  }
  const { act, gateUp: x } = input;
  return { MADE: act === "swiglu" ? 2 : 3, of: { x, rstd: null, weight: null }, K: dim(x, 1) / 2 };
}

/** The gradient of A += ds^T drop(x), ds c[E]. */
export const loraDownGrad = op<AdapterArgs & DropoutArgs & DownInput & { ds: Tensor }>(
  "lora_down_grad",
  {
    ...{ x: "c M K", normOf: "c M K", rstd: "f32 M", weight: "f32 K", gateUp: "c M 2K" },
    ...{ ds: "c E", ...ADAPTER_SPECS, ...DROPOUT_SPECS },
  },
  {
    cpu: (args, host) => {
      invariant("x" in args, "lora_down_grad reads x itself on a CPU");
      const { x, ds } = args;
      const width = dim(x, 1);
      eachSegment(host, args, dim(x, 0), (segment, targets) => {
        const input = masked(host, args, segment);
        for (const { rank, low, matrix } of targets) {
          const gradient = { ptr: matrix(A_GRADIENT), ld: width };
          host.product([rank, width, segment.rows], low(ds), true, input, false, gradient, 1, 1);
        }
      });
    },
    cuda: (args, gpu) => {
      const { ds, rowNumber, dropout, module } = args;
      const { MADE, of, K } = madeOf(args);
      const [M, E, L] = [dim(of.x, 0), dim(ds, 0), dim(args.ranks, 0)];
      const tiles = M / CUDA_ROW_TILE;
      const kernel = columnVariant(gpu, "lora_down_grad", args, { MADE });
      const [BK, CB, CHUNK] = [kernel.constant("BK"), kernel.constant("CB"), kernel.constant("CHUNK")];
      const shared = { scratch: gpu.scratch(laterRows(E, CHUNK) * K * 4), ...tablesOf(args), M, K };
      gpu.launch(kernel, [cdiv(K, BK), mostChunks(tiles, L, CHUNK), cdiv(widest(args), CB)], {
        ...{ ...of, ds, row_number: rowNumber, dropout, module, ...shared },
      });
      const add = gpu.kernel("lora_down_grad_sum");
      const grid = adders(args, tiles, CHUNK, cdiv(K, add.constant("BLOCK")));
      if (grid[0] > 0) gpu.launch(add, grid, shared);
    },
  },
);
