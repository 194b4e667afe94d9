// Which experts compute a token: the best k by the router's logits, with their weights, and the rows of all experts sorted
// for the products (ops/experts.ts).
//
// Letters beyond op.ts: E experts, k of them for a token, P sorted rows, X rows of a tile of these. A pair (m, j) is row m in
// its j-th expert, and has the number m k + j. Pairs are sorted by expert, adapter and row, and those of one adapter in one
// expert fill whole tiles, so that a row's place in a tile depends on its adapter's own rows alone. Padding rows of the batch,
// which attend to nothing, go to no expert. P is a bound that sizes alone decide: the host never learns what was chosen.
//
// Of logits as large, and of scores, the one of the lower expert comes first. Slots j are in descending order of what they
// were chosen by.

import { F, I, native, P } from "../../ffi/native.ts";
import type { DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import type { Router } from "../base/spec.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { expertSlots, MOST_ROWS } from "../device/fewrows.ts";
import { CPU_EXPERT_TILE, CUDA_ROW_TILE } from "../device/tile.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  route_choose: { args: [P, P, P, I, I, I, I, I, I, I, F, F, P, P], returns: "void" },
  route_sort: { args: [P, P, I, I, I, I, I, I, I, P, P, P, P, P, P], returns: "void" },
  route_backward: { args: [P, P, P, P, I, I, I, I, I, F, F, P], returns: "void" },
});

/** Where the rows of a batch went. */
export type Routes = {
  /** i32[M, k] the experts of each row; -1 for none. */
  readonly experts: Tensor;
  /** f32[M, k] their weights. */
  readonly weights: Tensor;
  /** i32[M, k] the pair's sorted row; -1 for none. */
  readonly place: Tensor;
  /** i32[P] the pair of each sorted row; -1 for padding. */
  readonly source: Tensor;
  /** i32[P / X] the expert of each tile, -1 beyond the last; and its adapter, -1 for none. */
  readonly tileExpert: Tensor;
  readonly tileAdapter: Tensor;
  /** i32[E + 1] the first sorted row of each expert, and the end of all. */
  readonly firstRow: Tensor;
  /** i32[L + 1, E] rows of each adapter in each expert; last those of no adapter. */
  readonly counts: Tensor;
  /** For GPUs: i32[L + 1, E] the first of these rows. */
  readonly starts: Tensor;
  /** For GPUs: tiles of the products (kernels/triton/route.py). */
  readonly blocks: Tensor;
};

/** What decides the size of routes. */
export type RouteSizes = {
  readonly rows: number;
  readonly adapters: number;
  readonly experts: number;
  readonly perToken: number;
};

/** Sorted rows are a multiple of this, whatever the tile. */
const ALIGNED = 128;
/** Rows of a tile of the GPU's products, at least. */
const LEAST_HEIGHT = 32;

/** The most sorted rows that these sizes can have. */
export function sortedRows({ rows, adapters, experts, perToken }: RouteSizes, tile: number): number {
  const pairs = rows * perToken;
  return alignUp(pairs + Math.min(experts * (adapters + 1), pairs) * (tile - 1), ALIGNED);
}

/** Numbers of `blocks` where rows are few (fewexperts.ts). */
const fewBlocks = ({ rows, experts, perToken }: RouteSizes): number =>
  4 * expertSlots(Math.min(rows, MOST_ROWS) * perToken, experts, 16);

export function takeRoutes(take: (dtype: DType, ...shape: number[]) => Tensor, sizes: RouteSizes, tile: number): Routes {
  const { rows, adapters, experts, perToken } = sizes;
  const sorted = sortedRows(sizes, tile);
  return {
    experts: take("i32", rows, perToken),
    weights: take("f32", rows, perToken),
    place: take("i32", rows, perToken),
    source: take("i32", sorted),
    tileExpert: take("i32", Math.floor(sorted / tile)),
    tileAdapter: take("i32", Math.floor(sorted / tile)),
    firstRow: take("i32", experts + 1),
    counts: take("i32", adapters + 1, experts),
    starts: take("i32", adapters + 1, experts),
    blocks: take("i32", Math.max(experts + 1 + 2 * (cdiv(sorted, LEAST_HEIGHT) + experts), fewBlocks(sizes))),
  };
}

/** The routes of the first `rows` rows. */
export function cutRoutes(routes: Routes, sizes: RouteSizes, tile: number): Routes {
  const cut = (t: Tensor, count: number): Tensor => ({ ...t, shape: [count, ...t.shape.slice(1)] });
  const sorted = sortedRows(sizes, tile);
  return {
    ...routes,
    experts: cut(routes.experts, sizes.rows),
    weights: cut(routes.weights, sizes.rows),
    place: cut(routes.place, sizes.rows),
    source: cut(routes.source, sorted),
    tileExpert: cut(routes.tileExpert, Math.floor(sorted / tile)),
    tileAdapter: cut(routes.tileAdapter, Math.floor(sorted / tile)),
  };
}

/**
 * Chooses the experts of each row by logits c[M, E], and sorts the pairs. `correction` f32[E] is added to scores for choosing
 * alone; rows of `bounds` i32[M, 2] that attend to nothing choose none. `adapters`: L.
 */
export const route = op<{
  logits: Tensor;
  correction: Tensor | null;
  router: Router;
  bounds: Tensor;
  tileAdapter: Tensor;
  adapters: number;
  routes: Routes;
}>(
  "route",
  { logits: "c M E", correction: "f32 E", bounds: "i32 M 2", tileAdapter: "i32 T" },
  {
    cpu: (args, host) => {
      const { logits, tileAdapter, adapters, routes } = args;
      const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(routes.experts, 1)];
      const { experts, place, source, tileExpert, firstRow, counts } = routes;
      chooseOnHost(args);
      const sizes = [host.rowTile, M, E, k, adapters, CPU_EXPERT_TILE, dim(source, 0)] as const;
      const tiles = [tileExpert.ptr, routes.tileAdapter.ptr] as const;
      c.route_sort(experts.ptr, tileAdapter.ptr, ...sizes, place.ptr, source.ptr, ...tiles, firstRow.ptr, counts.ptr);
    },
    cuda: (args, gpu) => {
      const { logits, tileAdapter, adapters: L, routes } = args;
      const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(routes.experts, 1)];
      const { experts, place, source, firstRow, counts, starts, blocks } = routes;
      const T = M / CUDA_ROW_TILE;
      const begin = gpu.scratch(4 * (T + 1) * E);
      const height = productHeight(gpu);
      const shared = { experts, begin, first_row: firstRow, blocks, tile_adapter: tileAdapter, T, E, k, height };
      chooseExperts(gpu, args);
      const count = gpu.kernel("route_count");
      const across = cdiv(E, count.constant("EXPERTS"));
      gpu.launch(count, [T, across], shared);
      gpu.launch(holdingAll(gpu, "route_scan", E), [1], shared);
      const rows = { place, source, row_expert: routes.tileExpert, row_adapter: routes.tileAdapter, P: dim(source, 0) };
      gpu.launch(gpu.kernel("route_place"), [T + 1, across], { ...shared, ...rows });
      gpu.launch(holdingAll(gpu, "route_tables", E), [L + 2], { ...shared, counts, starts, L });
    },
  },
);

type Choosing = {
  readonly logits: Tensor;
  readonly correction: Tensor | null;
  readonly router: Router;
  readonly bounds: Tensor;
  readonly routes: Pick<Routes, "experts" | "weights" | "place">;
};

/** Fills `experts` and `weights`. */
export function chooseOnHost({ logits, correction, router, bounds, routes: { experts, weights } }: Choosing): void {
  const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(experts, 1)];
  const [sigmoid, normalise] = [Number(router.score === "sigmoid"), Number(router.normalise)];
  const { groups, keptGroups, eps, scaling } = router;
  const of = [sigmoid, normalise, groups, keptGroups, eps, scaling] as const;
  c.route_choose(logits.ptr, correction?.ptr ?? null, bounds.ptr, M, E, k, ...of, experts.ptr, weights.ptr);
}

/** The same on a GPU; `place` is -1 until rows are sorted. */
export function chooseExperts(gpu: Launcher, { logits, correction, router, bounds, routes }: Choosing): void {
  const { experts, weights, place } = routes;
  const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(experts, 1)];
  const { groups, keptGroups: kept } = router;
  gpu.launch(holdingAll(gpu, "route_choose", E), [M], {
    ...{ logits, correction, bounds, experts, weights, place, E, k, ...numbersOf(router), groups, kept },
    has_correction: flag(correction),
  });
}

/** dlogits c[M, E] from the gradients of the weights, dweights f32[M, k]; what was chosen counts as constant. */
export const routeBackward = op<{
  logits: Tensor;
  router: Router;
  routes: Routes;
  dweights: Tensor;
  dlogits: Tensor;
}>(
  "route_backward",
  { logits: "c M E", dweights: "f32 M S", dlogits: "c M E" },
  {
    cpu: ({ logits, router, routes, dweights, dlogits }) => {
      const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(dweights, 1)];
      const of = [Number(router.score === "sigmoid"), Number(router.normalise), router.eps, router.scaling] as const;
      const { experts, weights } = routes;
      c.route_backward(logits.ptr, experts.ptr, weights.ptr, dweights.ptr, M, E, k, ...of, dlogits.ptr);
    },
    cuda: ({ logits, router, routes: { experts, weights }, dweights, dlogits }, gpu) => {
      const [M, E, k] = [dim(logits, 0), dim(logits, 1), dim(dweights, 1)];
      const kernel = holdingAll(gpu, "route_backward", E);
      gpu.launch(kernel, [M], { logits, experts, weights, dweights, dlogits, E, k, ...numbersOf(router) });
    },
  },
);

// On GPUs.

/** Rows of a tile of the products over experts, for which `blocks` is made. */
export const productHeight = (gpu: Launcher): number => gpu.kernel("experts_forward", { LORA: 0 }).constant("BM");

/** The variant that has all experts of a row in one block; plan/memory.ts refuses more. */
export function holdingAll(gpu: Launcher, name: string, E: number, block: "BLOCK" | "EXPERTS" = "BLOCK"): Variant {
  const found = gpu.variants(name).find((kernel) => kernel.constant(block) >= E);
  invariant(found, `${name} has no variant for ${E} experts`);
  return found;
}

const numbersOf = ({ score, normalise, scaling }: Router) => ({
  ...{ sigmoid: flag(score === "sigmoid" ? score : null), normalise: normalise ? 1 : 0, scaling },
});
