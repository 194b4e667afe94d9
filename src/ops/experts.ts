// Grouped products: each sorted row (route.ts) with its expert's weight, and with what its adapter adds there.
//
// `gather`: x has a row for each token, c[M, K], and sorted row p takes that of its pair, source[p] / k; padding takes zeros.
// Else x has the sorted rows, c[P, K].
//
// On the CPU the rows of one adapter in one expert are multiplied apart from all others, a block at a time from their first on.

import { I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { Host } from "../device/cpu/host.ts";
import { rowsOfFloats } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { type ExpertWeight, expertOf, groupSize, isPacked } from "../device/packed.ts";
import {
  BLOCK_ROWS,
  EXPERT_SPECS,
  type ExpertAdapters,
  eachBlock,
  eachTarget,
  expertTablesOf,
  rowsAt,
  sortedRowsOf,
} from "./experts/low-rank.ts";
import { addBias, frozen } from "./linear/frozen.ts";
import { A, B, columnsIn, columnsOf, F32, rowsOf } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { expandExperts, packedRoom } from "./packed.ts";
import type { Routes } from "./route.ts";

const c = native({ expert_rows: { args: [P, P, I, I, I, I, P], returns: "void" } });

/** What grouped products add for adapters: s c[P, W], scale f32[L, G]. */
export type ExpertLowRank = ExpertAdapters & {
  readonly s: Tensor;
  readonly scale: Tensor;
  readonly firstColumn: readonly number[];
};

/** Rows of a block, gathered into scratch after what the product needs, or where they are. */
export function blockOf(
  host: Host,
  { x, gather, routes }: { readonly x: Tensor; readonly gather: boolean; readonly routes: Routes },
  row: number,
  rows: number,
  before: number,
): Tensor {
  const [width, k] = [dim(x, 1), dim(routes.experts, 1)];
  if (!gather) return rowsAt(x, row, rows);
  const ptr = host.scratch(before + BLOCK_ROWS * width * F32) + before;
  c.expert_rows(x.ptr, routes.source.ptr, k, row, rows, width, ptr);
  return { ptr, dtype: "f32", shape: [rows, width] };
}

/**
 * y = W x + bias + scale B s of each sorted row's expert and adapter: x as above, bias c[E, N] or null, y c[P, N].
 */
export const expertsForward = op<{
  x: Tensor;
  gather: boolean;
  routes: Routes;
  weight: ExpertWeight;
  bias: Tensor | null;
  y: Tensor;
  lora: ExpertLowRank | null;
}>(
  "experts_forward",
  { x: "c R K", bias: "c E N", y: "c P N", s: "c P W", scale: "f32 L G", ...EXPERT_SPECS },
  {
    cpu: (args, host) => {
      const { routes, weight, bias, y, lora } = args;
      const scales = lora && rowsOfFloats(lora.scale);
      eachBlock(routes, ({ row, rows, expert, adapter }) => {
        const w = expertOf(weight, expert);
        const x = blockOf(host, args, row, rows, isPacked(w) ? packedRoom(host, w.format, rows, dim(args.x, 1)) : 0);
        const to = rowsAt(y, row, rows);
        if (bias) addBias(to, biasOf(bias, expert), false);
        frozen(host, x, w, true, to, bias ? 1 : 0);
        if (!lora || !scales) return;
        eachTarget(lora, expert, adapter, ({ g, rank, column, matrix }) => {
          const [first, columns] = columnsIn(lora.firstColumn, g);
          const [low, up] = [columnsOf(rowsOf(lora.s, row), column), { ptr: matrix(B), ld: columns }];
          host.product([rows, columns, rank], low, false, up, false, columnsOf(rowsOf(y, row), first), scales(adapter)[g]!, 1);
        });
      });
    },
    cuda: ({ x, gather, routes, weight, bias, y, lora }, gpu) => {
      const [K, N] = [dim(x, 1), dim(y, 1)];
      const kernel = gpu.kernel("experts_forward", { LORA: flag(lora) });
      const s = { s: lora?.s ?? null, W: lora ? dim(lora.s, 1) : 0, scale: lora?.scale ?? null };
      const args = { x, y, bias, has_bias: flag(bias), ...s, scale_stride: lora ? strideOf(lora.scale) : 0, N, K };
      const shared = { ...args, ...sortedRowsOf(routes, gather), ...expertTablesOf(lora, lora?.firstColumn ?? [0, N]) };
      eachGroup(gpu, weight, [N, K], (w, first, last) =>
        gpu.launch(kernel, groupedGrid(gpu, kernel, routes, last - first, N), {
          ...shared,
          ...w,
          first_expert: first,
          last_expert: last,
        }),
      );
    },
  },
);

/** The bias c[N] of an expert. */
const biasOf = (bias: Tensor, expert: number): Tensor => ({
  ...bias,
  ptr: bias.ptr + expert * dim(bias, 1) * F32,
  shape: [dim(bias, 1)],
});

/** dx = dy W + ds A of each sorted row's expert and adapter: dy as x above, dx c[P, K], ds c[P, W]. */
export const expertsBackward = op<{
  dy: Tensor;
  gather: boolean;
  routes: Routes;
  weight: ExpertWeight;
  dx: Tensor;
  lora: (ExpertAdapters & { readonly ds: Tensor }) | null;
}>(
  "experts_backward",
  { dy: "c R N", dx: "c P K", ds: "c P W", ...EXPERT_SPECS },
  {
    cpu: (args, host) => {
      const { dy, gather, routes, weight, dx, lora } = args;
      const width = dim(dx, 1);
      eachBlock(routes, ({ row, rows, expert, adapter }) => {
        const w = expertOf(weight, expert);
        const before = isPacked(w) ? packedRoom(host, w.format, rows, dim(dy, 1)) : 0;
        const from = blockOf(host, { x: dy, gather, routes }, row, rows, before);
        frozen(host, from, w, false, rowsAt(dx, row, rows), 0);
        if (!lora) return;
        eachTarget(lora, expert, adapter, ({ rank, column, matrix }) => {
          const [low, a] = [columnsOf(rowsOf(lora.ds, row), column), { ptr: matrix(A), ld: width }];
          host.product([rows, width, rank], low, false, a, false, rowsOf(dx, row), 1, 1);
        });
      });
    },
    cuda: ({ dy, gather, routes, weight, dx, lora }, gpu) => {
      const [K, N] = [dim(dx, 1), dim(dy, 1)];
      const kernel = gpu.kernel("experts_backward", { LORA: flag(lora) });
      const ds = { ds: lora?.ds ?? null, W: lora ? dim(lora.ds, 1) : 0 };
      const shared = { dy, dx, ...ds, N, K, ...sortedRowsOf(routes, gather), ...expertTablesOf(lora, [0, N]) };
      eachGroup(gpu, weight, [N, K], (w, first, last) =>
        gpu.launch(kernel, groupedGrid(gpu, kernel, routes, last - first, K), {
          ...shared,
          ...w,
          first_expert: first,
          last_expert: last,
        }),
      );
    },
  },
);

// On GPUs.

/** One persistent program for each multiprocessor, or for each tile that there can be where these are fewer. */
const groupedGrid = (gpu: Launcher, kernel: Variant, { source }: Routes, experts: number, columns: number) =>
  [
    Math.min(
      gpu.multiprocessors,
      (cdiv(dim(source, 0), kernel.constant("BM")) + experts) * cdiv(columns, kernel.constant("BN")),
    ),
  ] as const;

/**
 * Calls `launch` with the weights [N, K] of all experts, first .. last - 1, as the kernels take them; packed ones are taken
 * apart in the scratch, as many experts at a time as fit there.
 */
function eachGroup(
  gpu: Launcher,
  weight: ExpertWeight,
  [N, K]: readonly [number, number],
  launch: (w: { readonly w: Tensor; readonly pitch: number }, first: number, last: number) => void,
): void {
  const { first, experts, stride } = weight;
  const row = K * bytesOf(gpu.compute);
  if (!isPacked(first)) {
    const pitch = stride / row;
    invariant(Number.isInteger(pitch), `experts are ${stride} bytes apart, expected a multiple of ${row}`);
    launch({ w: { ...first, shape: [(experts - 1) * pitch + N, K] }, pitch }, 0, experts);
    return;
  }
  const size = groupSize(experts, N * row);
  for (let e = 0; e < experts; e += size) {
    const last = Math.min(e + size, experts);
    const w = { ptr: gpu.scratch(size * N * row), dtype: gpu.compute, shape: [(last - e) * N, K] };
    expandExperts(gpu, weight, e, w);
    launch({ w, pitch: N }, e, last);
  }
}
