// Low-rank rows between those of the batch and the sorted ones of experts (route.ts), for adapters with a factor that all
// experts share: its product is of a row of the batch, k times fewer than sorted ones, whose adapters lie side by side.
//
// `low` c[E] has the rows of the batch as linear/low-rank.ts says, s c[P, W] the sorted ones; `ranks` are 0 where an adapter
// has nothing to be moved.

import { I, native, P } from "../../ffi/native.ts";
import { type Host, ints, rowsOfInts } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { paddedWidth, RANK_TILE } from "../methods/layout.ts";
import { eachBlock } from "./experts/low-rank.ts";
import { type AdapterArgs, F32, segments, widest } from "./linear/low-rank.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";
import type { Routes } from "./route.ts";

const c = native({
  low_gather: { args: [P, I, P, P, P, I, I, I], returns: "void" },
  low_spread: { args: [P, I, P, P, P, I, I, I, I], returns: "void" },
});

type Rows = Pick<AdapterArgs, "span" | "tileAdapter" | "lowAt" | "ranks"> & {
  readonly routes: Routes;
  readonly s: Tensor;
  readonly low: Tensor;
};
const SPECS = { s: "c P W", low: "c E", ranks: "i32 L G", lowAt: "i32 T" };

/** low[m] = the sum over j of s[place[m, j]], with `weighs` times weights[m, j]: zeros where there is no expert. */
export const lowGather = op<Rows & { weighs: boolean }>("low_gather", SPECS, {
  cpu: (args, host) => {
    const { s, routes, weighs } = args;
    eachRows(host, args, (row, rows, low, width) => {
      const [k, first] = [dim(routes.place, 1), row * dim(routes.place, 1) * F32];
      const weights = weighs ? routes.weights.ptr + first : null;
      c.low_gather(s.ptr, dim(s, 1), routes.place.ptr + first, weights, low, rows, k, width);
    });
  },
  cuda: (args, gpu) => launchRows(gpu, "low_gather", args, { weights: args.routes.weights, weighs: Number(args.weighs) }),
});

/** s[place[m, j]] = low[m], for each expert of a row; zeros in padding. */
export const lowSpread = op<Rows>("low_spread", SPECS, {
  cpu: (args, host) => {
    const { s, low, lowAt, routes } = args;
    const [own, ld, k] = [rowsOfInts(args.ranks), dim(s, 1), dim(routes.place, 1)];
    eachBlock(routes, ({ row, rows, adapter }) => {
      const width = adapter < 0 ? 0 : paddedWidth(own(adapter));
      const [to, source] = [s.ptr + row * ld * F32, routes.source.ptr + row * F32];
      if (width > 0) c.low_spread(to, ld, source, low.ptr, lowAt.ptr, host.rowTile, rows, k, width);
    });
  },
  cuda: (args, gpu) => launchRows(gpu, "low_spread", args, {}),
});

/** Calls `each` for the rows of each adapter that has some: the first, how many, where they lie in `low`, and their columns. */
function eachRows(
  host: Host,
  { tileAdapter, lowAt, ranks, low, routes }: Rows,
  each: (row: number, rows: number, low: number, width: number) => void,
): void {
  const [own, starts] = [rowsOfInts(ranks), ints(lowAt)];
  for (const { row, rows, adapter } of segments(host, tileAdapter, dim(routes.place, 0))) {
    const width = paddedWidth(own(adapter));
    if (width > 0) each(row, rows, low.ptr + starts[row / host.rowTile]! * RANK_TILE * F32, width);
  }
}

function launchRows(gpu: Launcher, name: string, args: Rows, more: Readonly<Record<string, Tensor | number>>): void {
  const { s, low, routes, lowAt, ranks, tileAdapter } = args;
  const kernel = gpu.kernel(name);
  const [M, k] = [dim(routes.place, 0), dim(routes.place, 1)];
  gpu.launch(kernel, [M / kernel.constant("BM"), cdiv(widest(args), kernel.constant("CB"))], {
    ...{ s, place: routes.place, low, low_at: lowAt, ranks, ranks_stride: strideOf(ranks), tile_adapter: tileAdapter },
    ...{ W: dim(s, 1), k, G: dim(ranks, 1), ...more },
  });
}
