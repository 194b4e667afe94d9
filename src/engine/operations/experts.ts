// A layer's experts in a pass: which of them compute a token, their two products, and the gradients.
//
// The routing weight comes after the second product, so that its output need not be kept: the gradient of the weight is that
// of the activation, without the weight, times the activation.
//
// A factor of an adapter that all experts share, A of the first product and B of the second, is multiplied with the rows of the
// batch, k times fewer than those sorted by expert: A x before they are sorted, B s once a token's experts are summed.

import type { DType } from "../../base/dtype.ts";
import { maxOf, sum } from "../../base/shape.ts";
import { firstRows } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import { expertTile } from "../../device/tile.ts";
import { type ExpertProduct, isExperts, type Op } from "../../families/definition.ts";
import type { Group } from "../../families/linears.ts";
import { addTo } from "../../ops/add.ts";
import { biasWeightGrad, combineBackward, combineForward } from "../../ops/combine.ts";
import { expertActBackward, expertActForward } from "../../ops/expert-act.ts";
import { expertDown, expertDownGrad, expertUpGrad } from "../../ops/expert-lora.ts";
import { lowGather, lowSpread } from "../../ops/expert-rows.ts";
import type { ExpertAdapters } from "../../ops/experts/low-rank.ts";
import { expertsBackward, expertsForward } from "../../ops/experts.ts";
import { linearBackward, linearForward } from "../../ops/linear.ts";
import { loraDown, loraDownGrad, loraUpGrad } from "../../ops/lora.ts";
import { cutRoutes, type RouteSizes, type Routes, route, routeBackward, sortedRows, takeRoutes } from "../../ops/route.ts";
import type { Sizes } from "../layers/buffers.ts";
import type { LayerPass } from "../layers/layer-pass.ts";
import type { Program } from "../layers/program.ts";
import { expertsByRow } from "./row-experts.ts";

type Experts = Op<"experts">;
type Take = (dtype: DType, ...shape: number[]) => Tensor;
type TakeNamed = (name: string, dtype: DType, ...shape: number[]) => Tensor;

/** What the backward pass reads. */
export type ExpertActivations = {
  readonly logits: Tensor; // c[M, E]
  readonly routes: Routes;
  readonly gateUp: Tensor; // c[P, 2 I], then its gradient
  /** s = A x of the two products, c[P, W]; W 0 where no adapter acts there. */
  readonly low: Readonly<Record<"up" | "down", Tensor>>;
};

/** What every layer's experts overwrite. */
export type ExpertWork = {
  readonly act: Tensor; // c[P, I]; in the backward pass its gradient
  readonly y: Tensor; // c[P, H]; in the backward pass the gradient of the sorted inputs
  readonly dweights: Tensor; // f32[M, k]
  readonly dlogits: Tensor; // c[M, E]
  readonly ds: Tensor; // c[P, W]
  /** s and its gradient of rows of the batch, c[E], where experts share a factor. */
  readonly low: Readonly<Record<"s" | "ds", Tensor>>;
};

/** Columns of s that the widest adapter has in a group. */
const columnsIn = ({ low, rows }: Pick<Sizes, "low" | "rows">, { group }: ExpertProduct): number =>
  (low[group as Group] ?? 0) / rows;

const sizesOf = ({ count: experts, perToken }: Experts, rows: number, adapters: number): RouteSizes => ({
  ...{ rows, adapters, experts, perToken },
});

/** `layer` has tables of its own for how many rows its experts got, of `takeOfPass`, since they are read after the pass. */
export function takeExpertActivations(
  take: TakeNamed,
  takeOfPass: TakeNamed,
  compute: DType,
  of: Experts,
  sizes: Sizes,
  layer: number,
): ExpertActivations {
  const { rows, slots, expertTile } = sizes;
  const route = sizesOf(of, rows, slots);
  const sorted = sortedRows(route, expertTile);
  let tables = 0;
  return {
    logits: take(`${of.to}, logits`, compute, rows, of.count),
    routes: {
      ...takeRoutes((dtype, ...shape) => take(`${of.to}, routes ${tables++}`, dtype, ...shape), route, expertTile),
      counts: takeOfPass(`counts of layer ${layer}`, "i32", slots + 1, of.count),
    },
    gateUp: take(`${of.to}, gate and up`, compute, sorted, sum(of.up.out)),
    low: {
      up: take(`${of.to}, low of up`, compute, sorted, columnsIn(sizes, of.up)),
      down: take(`${of.to}, low of down`, compute, sorted, columnsIn(sizes, of.down)),
    },
  };
}

/** Null where no layer has experts. */
export function takeExpertWork(take: Take, compute: DType, program: Program, sizes: Sizes): ExpertWork | null {
  const all = program.flatMap(({ operations }) => operations.filter(isExperts));
  if (all.length === 0) return null;
  const { rows, slots, expertTile } = sizes;
  const sorted = maxOf(all.map((of) => sortedRows(sizesOf(of, rows, slots), expertTile)));
  const columns = maxOf(all.flatMap(({ up, down }) => [columnsIn(sizes, up), columnsIn(sizes, down)]));
  return {
    act: take(compute, sorted, maxOf(all.map(({ down }) => down.in))),
    y: take(compute, sorted, maxOf(all.map(({ up }) => up.in))),
    dweights: take("f32", rows, maxOf(all.map(({ perToken }) => perToken))),
    dlogits: take(compute, rows, maxOf(all.map(({ count }) => count))),
    ds: take(compute, sorted, columns),
    low: { s: take(compute, rows * columns), ds: take(compute, rows * columns) },
  };
}

/** The memory of a layer's experts, cut to the rows of the pass. */
function memoryOf(of: Experts, pass: LayerPass) {
  const { logits, routes, gateUp, low } = pass.experts(of.to);
  const { rows } = pass.batch;
  const sizes = sizesOf(of, rows, pass.slots);
  const tile = expertTile(pass.device);
  const sorted = sortedRows(sizes, tile);
  const { act, y, dweights, dlogits, ds } = pass.work.experts!;
  const shaped = (t: Tensor, ...shape: number[]): Tensor => ({ ...t, shape });
  return {
    logits: firstRows(logits, rows),
    routes: cutRoutes(routes, sizes, tile),
    gateUp: firstRows(gateUp, sorted),
    act: shaped(act, sorted, of.down.in),
    y: shaped(y, sorted, of.up.in),
    dweights: shaped(dweights, rows, of.perToken),
    dlogits: shaped(dlogits, rows, of.count),
    up: lowRank(of.up, pass, firstRows(low.up, sorted), ds),
    down: lowRank(of.down, pass, firstRows(low.down, sorted), ds),
  };
}

/** What the adapters of the pass have in one of the products; null where none has anything. */
function lowRank({ group }: ExpertProduct, pass: LayerPass, s: Tensor, ds: Tensor) {
  const at = pass.adapters(group);
  if (!at) return null;
  const { factors, strides, ranks, ownRanks, scale, firstColumn } = at.site;
  const { outer, span } = at.low;
  const inner: ExpertAdapters = { span, factors, strides, ranks };
  return {
    ...{ s, ds: { ...ds, shape: s.shape }, scale, firstColumn },
    /** Of the factor that each expert has of its own in any adapter. */
    inner,
    /** Of the outer factor where each expert has its own, and where all share it; null where no adapter has it so. */
    own: outer.own ? { ...inner, ranks: ownRanks } : null,
    shared: outer.shared ? sharedIn(pass, at) : null,
  };
}

/** Of adapters whose experts share the outer factor: what products with rows of the batch take. */
function sharedIn({ work, batch }: LayerPass, { site, low }: NonNullable<ReturnType<LayerPass["adapters"]>>) {
  const { factors, sharedRanks: ranks, noDropout: dropout, module } = site;
  const { s, ds } = work.experts!.low;
  const { tileAdapter, rowNumber } = batch;
  return {
    tables: { span: low.span, lowAt: low.lowAt, tileAdapter, factors, ranks },
    dropping: { rowNumber, dropout, module },
    s: firstRows(s, low.elements),
    ds: firstRows(ds, low.elements),
  };
}

/** Up to the activation. */
function expertsInside(of: Experts, pass: LayerPass): void {
  const { device, batch } = pass;
  const { router, up } = pass.expertWeights();
  const correction = of.correction === null ? null : pass.factor(of.correction);
  const { logits, routes, gateUp, up: lora } = memoryOf(of, pass);
  const x = pass.value(of.from);
  linearForward(device, { x, ...router, residual: null, y: logits, lora: null });
  const { bounds, tileAdapter } = batch;
  route(device, { logits, correction, router: of.router, bounds, tileAdapter, adapters: pass.slots, routes });
  if (lora?.own) expertDown(device, { x, gather: true, routes, ...lora.own, s: lora.s });
  if (lora?.shared) {
    const { tables, dropping, s: low } = lora.shared;
    loraDown(device, { x, s: low, ...tables, ...dropping });
    lowSpread(device, { low, routes, s: lora.s, ...tables });
  }
  expertsForward(device, { x, gather: true, routes, ...up, y: gateUp, lora: lora && { ...lora, ...lora.inner } });
}

/** The activation, and s of what follows. */
function activate(of: Experts, pass: LayerPass): void {
  const { device } = pass;
  const { routes, gateUp, act, down } = memoryOf(of, pass);
  expertActForward(device, { gateUp, act, kind: of.activation, routes });
  if (down) expertDown(device, { x: act, gather: false, routes, ...down.inner, s: down.s });
}

/** What a backward pass reads, computed again: all but the output. */
export function expertsAgain(of: Experts, pass: LayerPass): void {
  expertsInside(of, pass);
  if (pass.adapters(of.down.group)) activate(of, pass);
}

export function expertsPassForward(of: Experts, pass: LayerPass): void {
  if (pass.batch.rowAdapter) {
    expertsByRow(of, pass);
    return;
  }
  expertsInside(of, pass);
  const { device } = pass;
  activate(of, pass);
  const { routes, act, y, down } = memoryOf(of, pass);
  const own = down?.own ? { ...down, ...down.own } : null;
  expertsForward(device, { x: act, gather: false, routes, ...pass.expertWeights().down, y, lora: own });
  const shared = down?.shared ? { ...down.shared.tables, low: gathered(pass, routes, down), scale: down.scale } : null;
  const residual = of.residual === null ? null : pass.value(of.residual);
  combineForward(device, { y, routes, residual, out: pass.value(of.to), lora: shared });
}

/** What the B that experts share is multiplied with: of each row of the batch the sum over its experts of s, as they weigh. */
function gathered({ device }: LayerPass, routes: Routes, { s, shared }: LowRankOfExperts): Tensor {
  const { tables, s: low } = shared!;
  lowGather(device, { s, routes, low, weighs: true, ...tables });
  return low;
}

export function expertsPassBackward(of: Experts, pass: LayerPass): void {
  const memory = memoryOf(of, pass);
  if (memory.up) pass.restore(of.from);
  backwardOfDown(of, pass, memory);
  backwardOfUp(of, pass, memory);
}

type Memory = ReturnType<typeof memoryOf>;
type LowRankOfExperts = NonNullable<Memory["down"]>;

/** From the gradient of the output to that of gate and up, in their place, and of the routing weights. */
function backwardOfDown(of: Experts, pass: LayerPass, { routes, gateUp, act: dact, dweights, down: lora }: Memory): void {
  const { device } = pass;
  const { down } = pass.expertWeights();
  const dout = pass.gradient(of.to)!;
  const { weights: rowScale } = routes;
  if (lora?.own) expertUpGrad(device, { dy: dout, gather: true, rowScale, routes, ...lora, ...lora.own });
  if (lora?.shared) {
    const { tables, ds: low } = lora.shared;
    const { scale, firstColumn } = lora;
    loraUpGrad(device, { dy: dout, s: gathered(pass, routes, lora), ds: low, scale, firstColumn, ...tables });
    lowSpread(device, { low, routes, s: lora.ds, ...tables });
  }
  const low = lora && { ...lora.inner, ds: lora.ds };
  expertsBackward(device, { dy: dout, gather: true, routes, weight: down.weight, dx: dact, lora: low });
  expertActBackward(device, { dact, gateUp, kind: of.activation, routes, dgateUp: gateUp, dweights });
  if (lora) expertDownGrad(device, { x: dact, gather: false, routes, ...lora.inner, ds: lora.ds });
  if (down.bias) biasWeightGrad(device, { dout, bias: down.bias, routes, dweights });
}

function backwardOfUp(of: Experts, pass: LayerPass, { logits, routes, gateUp: dy, y: dxs, up: lora, ...work }: Memory): void {
  const { device } = pass;
  const { router, up } = pass.expertWeights();
  const { dweights, dlogits } = work;
  const sorted = { gather: false, routes } as const;
  const x = pass.value(of.from);
  if (lora) expertUpGrad(device, { dy, ...sorted, rowScale: null, ...lora, ...lora.inner });
  if (lora?.own) expertDownGrad(device, { x, gather: true, routes, ...lora.own, ds: lora.ds });
  if (lora?.shared) {
    const { tables, dropping, ds: low } = lora.shared;
    lowGather(device, { s: lora.ds, routes, low, weighs: false, ...tables });
    loraDownGrad(device, { x, ds: low, ...tables, ...dropping });
  }
  const dx = pass.gradient(of.from);
  if (!dx) return;
  const own = lora?.own ? { ...lora.own, ds: lora.ds } : null;
  expertsBackward(device, { dy, ...sorted, weight: up.weight, dx: dxs, lora: own });
  const shared = lora?.shared ? { ...lora.shared.tables, low: lora.shared.ds } : null;
  combineBackward(device, { dxs, routes, adds: pass.program.adding.has(of), dx, lora: shared });
  routeBackward(device, { logits, router: of.router, routes, dweights, dlogits });
  const added = pass.added(of.up.in);
  linearBackward(device, { dy: dlogits, weight: router.weight, dx: added, lora: null });
  addTo(device, { x: added, y: dx });
}
