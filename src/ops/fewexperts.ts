// A layer's experts over few rows, each with its own adapter: what tokens that are generated pass. On GPUs it is bound by
// reading the weights of each expert that some row chose once (kernels/triton/fewexperts.py).
//
// A pair is a row and an expert that it chose; its sorted row is `place`, or, on a CPU, the pair itself.

import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import type { Router } from "../base/spec.ts";
import { floats, type Host, ints, rowsOfFloats } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { expertHeight, expertSlots, fewExpertsScratch, LOW } from "../device/fewrows.ts";
import { type ExpertWeight, expertOf, isPacked } from "../device/packed.ts";
import { RANK_TILE } from "../methods/layout.ts";
import { combineForward } from "./combine.ts";
import { type ExpertActivation, expertActForward, read } from "./expert-act.ts";
import { type ExpertAdapters, eachTarget, expertTablesOf, rowsAt } from "./experts/low-rank.ts";
import { codesOf, FORMATS } from "./fewrows/packed.ts";
import { addBias, frozen } from "./linear/frozen.ts";
import { A, B, boundaries, columnsIn, columnsOf, F32, rowsOf } from "./linear/low-rank.ts";
import { cdiv, dim, flag, op, strideOf } from "./op.ts";
import { chooseExperts, chooseOnHost, holdingAll, type Routes } from "./route.ts";

/** Where rows went: `blocks` i32[.., 4] are tiles of sorted rows. */
export type FewRoutes = Pick<Routes, "experts" | "weights" | "place" | "source" | "blocks" | "firstRow">;

/** The experts of rows by logits c[M, E], as ops/route.ts chooses them, and their pairs, sorted. */
export const fewRoute = op<{
  logits: Tensor;
  correction: Tensor | null;
  router: Router;
  bounds: Tensor;
  routes: FewRoutes;
}>(
  "fewroute",
  { logits: "c M E", correction: "f32 E", bounds: "i32 M 2" },
  {
    cpu: (args) => {
      chooseOnHost(args);
      const { experts, place, source, firstRow } = args.routes;
      const pairs = ints(experts);
      ints(place).set(pairs.map((expert, pair) => (expert < 0 ? -1 : pair)));
      ints(source).set(pairs.map((expert, pair) => (expert < 0 ? -1 : pair)));
      ints(firstRow).fill(pairs.length); // all rows are looked at
    },
    cuda: (args, gpu) => {
      const { experts, place, source, blocks } = args.routes;
      const [E, pairs] = [dim(args.logits, 1), dim(experts, 0) * dim(experts, 1)];
      chooseExperts(gpu, args);
      const kernel = holdingAll(gpu, "fewexperts_sort", E, "EXPERTS");
      const height = expertHeight(pairs, E);
      gpu.launch(kernel, [E], { experts, place, source, blocks, pairs, E, height, slots: expertSlots(pairs, E) });
    },
  },
);

/** What a product of experts adds for the adapters of rows. */
export type FewExpertsLowRank = ExpertAdapters & { readonly scale: Tensor; readonly firstColumn: readonly number[] };

type Product = {
  readonly routes: FewRoutes;
  /** i32[M], -1 for the base alone. */
  readonly rowAdapter: Tensor;
  readonly weight: ExpertWeight;
  readonly bias: Tensor | null;
  readonly lora: FewExpertsLowRank | null;
};
const SPECS = {
  ...{ rowAdapter: "i32 M", scale: "f32 L S", ranks: "i32 L S" },
  ...{ factors: "i64 L S 4", strides: "i32 L S 2" },
};

/**
 * act c[P, I] of y = W x + bias + scale B A x of each pair's expert and adapter: x c[M, K], bias c[E, N] or null, gateUp
 * c[P, N] memory of y.
 */
export const fewExpertsUp = op<Product & { x: Tensor; kind: ExpertActivation; gateUp: Tensor; act: Tensor }>(
  "fewexperts_up",
  { x: "c M K", bias: "c E G", gateUp: "c P G", act: "c P I", ...SPECS },
  {
    known: ({ kind, act }) => read(kind, dim(act, 1)),
    cpu: (args, host) => {
      const { x, kind, gateUp, act, routes } = args;
      const k = dim(routes.experts, 1);
      eachPair(args, gateUp, (pair) => rowsAt(x, Math.floor(pair / k), 1), host);
      expertActForward.kernel.cpu({ gateUp, act, kind, routes: { ...routes, ...NOT_READ } }, host);
    },
    cuda: (args, gpu) => {
      const { kind, act, routes, bias, lora } = args;
      const { interleaved, squares, clamp } = kind;
      const { shared, slots, height, parts } = productOf(gpu, args, args.x, true);
      const kernel = gpu.kernel("fewexperts_act", { LORA: flag(lora), SQUARES: squares ? 1 : 0 });
      const width = dim(act, 1);
      gpu.launch(kernel, [cdiv(width, kernel.constant("BN")), slots * cdiv(height, LOW.rows)], {
        ...{ ...shared, ...parts, act, bias, has_bias: flag(bias), scale: lora?.scale ?? null, I: width },
        ...{ scale_stride: lora ? strideOf(lora.scale) : 0, ...boundaries(lora?.firstColumn ?? [0, parts.N]) },
        ...{ limit: clamp?.limit ?? 0, alpha: clamp?.alpha ?? 1, interleaved: interleaved ? 1 : 0, blocks: routes.blocks },
      });
    },
  },
);

/**
 * out c[M, H] = residual + the sum over j of weights[m, j] (W act + bias + scale B A act) of each pair: act c[P, K], residual
 * c[M, H] (may be out) or null, y c[P, H] memory of the products.
 */
export const fewExpertsDown = op<Product & { act: Tensor; y: Tensor; residual: Tensor | null; out: Tensor }>(
  "fewexperts_down",
  { act: "c P K", bias: "c E H", y: "c P H", residual: "c M H", out: "c M H", ...SPECS },
  {
    cpu: (args, host) => {
      const { act, y, residual, out, routes } = args;
      eachPair(args, y, (pair) => rowsAt(act, pair, 1), host);
      combineForward.kernel.cpu({ y, residual, out, routes: { ...routes, ...NOT_READ }, lora: null }, host);
    },
    cuda: (args, gpu) => {
      const { act, residual, out, routes, bias, lora } = args;
      invariant(!lora || dim(lora.ranks, 1) === 1, "the second product of experts is of several linears");
      const { shared, parts } = productOf(gpu, args, act, false);
      const kernel = gpu.kernel("fewexperts_combine", { LORA: flag(lora) });
      const { weights, place, experts } = routes;
      gpu.launch(kernel, [cdiv(dim(out, 1), kernel.constant("BN")), dim(out, 0)], {
        ...{ ...shared, ...parts, out, residual, has_residual: flag(residual), bias, has_bias: flag(bias), H: dim(out, 1) },
        ...{ weights, place, experts, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0 },
      });
    },
  },
);

// On the CPU, a pair at a time.

const NONE: Tensor = { ptr: 0, dtype: "i32", shape: [0] };
const NOT_READ = { tileExpert: NONE, tileAdapter: NONE, counts: NONE, starts: NONE };

/** Rows of y c[P, N] of all pairs, `from` rows of one. */
function eachPair(
  { routes, rowAdapter, weight, bias, lora }: Product,
  y: Tensor,
  from: (pair: number) => Tensor,
  host: Host,
): void {
  const [adapters, k] = [ints(rowAdapter), dim(routes.experts, 1)];
  const scales = lora && rowsOfFloats(lora.scale);
  for (const [pair, expert] of ints(routes.experts).entries()) {
    if (expert < 0) {
      floats(rowsAt(y, pair, 1)).fill(0);
      continue;
    }
    const [x, to, adapter] = [from(pair), rowsAt(y, pair, 1), adapters[Math.floor(pair / k)]!];
    if (bias) addBias(to, { ...bias, ptr: bias.ptr + expert * dim(bias, 1) * F32, shape: [dim(bias, 1)] }, false);
    frozen(host, x, expertOf(weight, expert), true, to, bias ? 1 : 0);
    if (!lora || !scales) continue;
    eachTarget(lora, expert, adapter, ({ g, rank, matrix }) => {
      const [first, columns] = columnsIn(lora.firstColumn, g);
      const low = { ptr: host.scratch(alignUp(rank, RANK_TILE) * F32), ld: rank };
      host.product([1, rank, dim(x, 1)], rowsOf(x), false, { ptr: matrix(A), ld: dim(x, 1) }, true, low);
      const up = { ptr: matrix(B), ld: columns };
      host.product([1, columns, rank], low, false, up, false, columnsOf(rowsOf(to), first), scales(adapter)[g]!, 1);
    });
  }
}

// On GPUs.

/** Launches the product of all pairs with what adapters need of it: what the kernels that sum read. */
function productOf(gpu: Launcher, { routes, rowAdapter, weight, lora }: Product, x: Tensor, gathers: boolean) {
  const { experts, source, blocks } = routes;
  const { first, experts: E, stride } = weight;
  const [N, K] = first.shape as [number, number];
  const [P, k] = [dim(experts, 0) * dim(experts, 1), dim(experts, 1)];
  const [height, slots] = [expertHeight(P, E), expertSlots(P, E)];
  const G = lora ? dim(lora.ranks, 1) : 1;
  const W = lora ? G * alignUp(lora.span.most, RANK_TILE) : 0;
  const scratch = fewExpertsScratch({ pairs: P, K, N, W });
  const part = gpu.scratch(scratch.bytes);
  const format = isPacked(first) ? first.format : "dense";
  const kernel = gpu.kernel("fewexperts_product", { BM: height, FORMAT: FORMATS[format]! });
  const lowPieces = cdiv(K, LOW.part);
  const lows = lora ? slots * cdiv(height, LOW.rows) * cdiv(W, LOW.columns) * lowPieces : 0;
  const { first1, first2, ...tables } = expertTablesOf(lora, lora?.firstColumn ?? [0, N]);
  const shared = { ...tables, source, blocks, row_adapter: rowAdapter, slots, height, k, P, W };
  const parts = { part, low: part + scratch.low, low_pieces: lowPieces, N };
  const pitch = stride / (K * bytesOf(gpu.compute));
  invariant(isPacked(first) || Number.isInteger(pitch), `experts are ${stride} bytes apart, expected whole rows of ${K}`);
  const held = isPacked(first)
    ? { ...codesOf(first), pitch: 0, step: stride }
    : { w: first, ...NO_CODES, ...boundaries([0, N]), pitch, step: 0 };
  gpu.launch(kernel, [lows + slots * cdiv(N, kernel.constant("BN"))], {
    ...{ ...shared, x, ...held, part, low: parts.low, gathers: gathers ? 1 : 0, N, K, lows },
  });
  return { shared, parts, slots, height };
}

const NO_CODES = { scales: null, nested: null, mean: null, absmax1: 0, absmax2: 0, nested1: 0, nested2: 0 };
