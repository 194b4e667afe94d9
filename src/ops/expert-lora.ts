// The low-rank products in experts that stand apart from the frozen one, and the gradients: lora.ts, for sorted rows.
//
// `rowScale` f32[M, k] or null: a row's part of the gradient of B counts as often as its pair says. So the gradient of an
// expert's output may be that of the sum over experts, without the weight: ds then lacks it, too, and the x of the gradient of
// A has it instead (expert-act.ts).
//
// Each expert has a factor of its own: where all experts of an adapter share it, its ranks are 0 here (expert-rows.ts).

import { I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { maxOf, sizeOf } from "../base/shape.ts";
import { type Host, rowsOfFloats } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import {
  BLOCK_ROWS,
  EXPERT_SPECS,
  type ExpertAdapters,
  eachBlock,
  eachTarget,
  expertTablesOf,
  sortedRowsOf,
} from "./experts/low-rank.ts";
import { blockOf } from "./experts.ts";
import { A, A_GRADIENT, B, B_GRADIENT, columnsIn, columnsOf, F32, rowsOf } from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";
import { productHeight, type Routes } from "./route.ts";

const c = native({ rows_weigh: { args: [P, I, P, P, I, I, I, P], returns: "void" } });

type Rows = { readonly gather: boolean; readonly routes: Routes };

/** s = A x of each sorted row's expert and adapter: x as in experts.ts, s c[P, W]. */
export const expertDown = op<ExpertAdapters & Rows & { x: Tensor; s: Tensor }>(
  "expert_down",
  { x: "c R K", s: "c P W", ...EXPERT_SPECS },
  {
    cpu: (args, host) => {
      const { x, s, routes } = args;
      const width = dim(x, 1);
      eachBlock(routes, ({ row, rows, expert, adapter }) => {
        let from: Tensor | null = null;
        eachTarget(args, expert, adapter, ({ rank, column, matrix }) => {
          from ??= blockOf(host, args, row, rows, 0); // once for all linears of the group
          const [a, low] = [{ ptr: matrix(A), ld: width }, columnsOf(rowsOf(s, row), column)];
          host.product([rows, rank, width], rowsOf(from), false, a, true, low);
        });
      });
    },
    cuda: (args, gpu) => lowOn(gpu, args, [args.x, args.s, null], A, [0, dim(args.x, 1)]),
  },
);

/** `rank` columns of s in a block, each row times its pair's number, in scratch after `before` bytes. */
function weighed(
  host: Host,
  { s, rowScale, routes }: { readonly s: Tensor; readonly rowScale: Tensor | null; readonly routes: Routes },
  [row, rows]: readonly [number, number],
  [column, rank]: readonly [number, number],
  before: number,
) {
  const from = columnsOf(rowsOf(s, row), column);
  const ptr = host.scratch(before + BLOCK_ROWS * rank * F32) + before;
  c.rows_weigh(from.ptr, from.ld, rowScale!.ptr, routes.source.ptr, row, rows, rank, ptr);
  return { ptr, ld: rank };
}

/** ds = scale dy B, and the gradient of B += scale dy^T s: dy as x in experts.ts, s and ds c[P, W]. */
export const expertUpGrad = op<
  ExpertAdapters &
    Rows & {
      dy: Tensor;
      rowScale: Tensor | null;
      s: Tensor;
      ds: Tensor;
      scale: Tensor;
      firstColumn: readonly number[];
    }
>(
  "expert_up_grad",
  { dy: "c R N", rowScale: "f32 M S", s: "c P W", ds: "c P W", scale: "f32 L G", ...EXPERT_SPECS },
  {
    cpu: (args, host) => {
      const { dy, gather, routes, rowScale, s, ds } = args;
      const scales = rowsOfFloats(args.scale);
      const gathered = gather ? BLOCK_ROWS * dim(dy, 1) * F32 : 0;
      eachBlock(routes, ({ row, rows, expert, adapter }) => {
        let from: Tensor | null = null;
        eachTarget(args, expert, adapter, ({ g, rank, column, matrix }) => {
          host.scratch(gathered + BLOCK_ROWS * rank * F32); // before anything lies there
          from ??= blockOf(host, { x: dy, gather, routes }, row, rows, 0);
          const [first, columns] = columnsIn(args.firstColumn, g);
          const [dyRows, scale] = [columnsOf(rowsOf(from), first), scales(adapter)[g]!];
          const [low, up] = [columnsOf(rowsOf(ds, row), column), { ptr: matrix(B), ld: columns }];
          host.product([rows, rank, columns], dyRows, false, up, true, low, scale);
          const own = rowScale ? weighed(host, args, [row, rows], [column, rank], gathered) : columnsOf(rowsOf(s, row), column);
          const gradient = { ptr: matrix(B_GRADIENT), ld: columns };
          host.product([rank, columns, rows], own, true, dyRows, false, gradient, scale, 1);
        });
      });
    },
    cuda: (args, gpu) => {
      const { dy, s, ds, scale, rowScale, firstColumn } = args;
      lowOn(gpu, args, [dy, ds, scale], B, firstColumn);
      gramOn(gpu, args, [dy, s, scale, rowScale], B, firstColumn);
    },
  },
);

/** The gradient of A += ds^T x: x as in experts.ts, ds c[P, W]. */
export const expertDownGrad = op<ExpertAdapters & Rows & { x: Tensor; ds: Tensor }>(
  "expert_down_grad",
  { x: "c R K", ds: "c P W", ...EXPERT_SPECS },
  {
    cpu: (args, host) => {
      const { x, ds, routes } = args;
      const width = dim(x, 1);
      eachBlock(routes, ({ row, rows, expert, adapter }) => {
        let from: Tensor | null = null;
        eachTarget(args, expert, adapter, ({ rank, column, matrix }) => {
          from ??= blockOf(host, args, row, rows, 0);
          const [low, gradient] = [columnsOf(rowsOf(ds, row), column), { ptr: matrix(A_GRADIENT), ld: width }];
          host.product([rank, width, rows], low, true, rowsOf(from), false, gradient, 1, 1);
        });
      });
    },
    cuda: (args, gpu) => gramOn(gpu, args, [args.x, args.ds, null, null], A, [0, dim(args.x, 1)]),
  },
);

// On GPUs. `side`: A or B.

/** s of x, or ds of dy. */
function lowOn(
  gpu: Launcher,
  args: ExpertAdapters & Rows,
  [x, low, scale]: readonly [Tensor, Tensor, Tensor | null],
  side: number,
  firstColumn: readonly number[],
): void {
  const { routes, gather, span } = args;
  const kernel = gpu.kernel("expert_low");
  const height = productHeight(gpu);
  const rows = sortedRowsOf(routes, gather);
  const tiles = cdiv(dim(low, 0), height) + rows.E;
  const grid = [
    cdiv(height, kernel.constant("ROWS")) * tiles,
    dim(args.ranks, 1),
    cdiv(span.most, kernel.constant("CB")),
  ] as const;
  gpu.launch(kernel, grid, {
    ...{ x, low, scale, scale_stride: scale ? strideOf(scale) : 0, side, W: dim(low, 1), width: dim(x, 1), height },
    ...expertTablesOf(args, firstColumn),
    ...rows,
  });
}

/** The gradient of A or B from x or dy and ds or s. */
function gramOn(
  gpu: Launcher,
  args: ExpertAdapters & Rows,
  [x, low, scale, rowScale]: readonly [Tensor, Tensor, Tensor | null, Tensor | null],
  side: number,
  firstColumn: readonly number[],
): void {
  const { routes, gather, span } = args;
  const { counts, starts } = routes;
  const kernel = gpu.kernel("expert_gram");
  const [RB, BN] = [kernel.constant("RB"), kernel.constant("BN")];
  const pitch = maxOf(firstColumn.slice(1).map((last, g) => last - firstColumn[g]!));
  const rows = sortedRowsOf(routes, gather);
  const [L, W] = [dim(counts, 0) - 1, dim(low, 1)];
  const weighed = rowScale && { ...low, ptr: gpu.scratch(sizeOf(low.shape) * bytesOf(low.dtype)) };
  if (weighed) {
    const kernel = gpu.kernel("expert_weigh");
    const P = dim(low, 0);
    const weighs = { s: low, weights: rowScale, source: routes.source, out: weighed, P, W };
    gpu.launch(kernel, [cdiv(P * W, kernel.constant("BLOCK"))], weighs);
  }
  gpu.launch(kernel, [cdiv(pitch, BN) * cdiv(span.most, RB), L * dim(args.ranks, 1), rows.E], {
    ...{ x, low: weighed ?? low, counts, starts, side, W, width: dim(x, 1), pitch },
    ...{ scale, scale_stride: scale ? strideOf(scale) : 0, ...expertTablesOf(args, firstColumn), ...rows },
  });
}
