// A layer's experts in a pass: which of them compute a token, their two products, and the gradients.
//
// The routing weight comes after the second product, so that its output need not be kept: the gradient of the weight is that
// of the activation, without the weight, times the activation.

import type { DType } from "../base/dtype.ts";
import { maxOf, sum } from "../base/shape.ts";
import { firstRows } from "../device/arena.ts";
import type { Tensor } from "../device/device.ts";
import { expertTile } from "../device/tile.ts";
import type { Op } from "../families/definition.ts";
import { addTo } from "../ops/add.ts";
import { biasWeightGrad, combineBackward, combineForward } from "../ops/combine.ts";
import { expertActBackward, expertActForward } from "../ops/expert-act.ts";
import { expertsBackward, expertsForward } from "../ops/experts.ts";
import { linearBackward, linearForward } from "../ops/linear.ts";
import { cutRoutes, type RouteSizes, type Routes, route, routeBackward, sortedRows, takeRoutes } from "../ops/route.ts";
import type { Sizes } from "./buffers.ts";
import type { LayerPass } from "./layer-pass.ts";
import { isExperts, type Program } from "./program.ts";

type Experts = Op<"experts">;
type Take = (dtype: DType, ...shape: number[]) => Tensor;
type TakeNamed = (name: string, dtype: DType, ...shape: number[]) => Tensor;

/** What the backward pass reads. */
export type ExpertActivations = {
  readonly logits: Tensor; // c[M, E]
  readonly routes: Routes;
  readonly gateUp: Tensor; // c[P, 2 I], then its gradient
};

/** What every layer's experts overwrite. */
export type ExpertWork = {
  readonly act: Tensor; // c[P, I]; in the backward pass its gradient
  readonly y: Tensor; // c[P, H]; in the backward pass the gradient of the sorted inputs
  readonly dweights: Tensor; // f32[M, k]
  readonly dlogits: Tensor; // c[M, E]
};

const sizesOf = ({ count: experts, perToken }: Experts, rows: number, adapters: number): RouteSizes => ({
  ...{ rows, adapters, experts, perToken },
});

export function takeExpertActivations(take: TakeNamed, compute: DType, of: Experts, sizes: Sizes): ExpertActivations {
  const { rows, slots, expertTile } = sizes;
  const route = sizesOf(of, rows, slots);
  let tables = 0;
  return {
    logits: take(`${of.to}, logits`, compute, rows, of.count),
    routes: takeRoutes((dtype, ...shape) => take(`${of.to}, routes ${tables++}`, dtype, ...shape), route, expertTile),
    gateUp: take(`${of.to}, gate and up`, compute, sortedRows(route, expertTile), sum(of.up.out)),
  };
}

/** Null where no layer has experts. */
export function takeExpertWork(take: Take, compute: DType, program: Program, sizes: Sizes): ExpertWork | null {
  const all = program.flatMap(({ operations }) => operations.filter(isExperts));
  if (all.length === 0) return null;
  const { rows, slots, expertTile } = sizes;
  const sorted = maxOf(all.map((of) => sortedRows(sizesOf(of, rows, slots), expertTile)));
  return {
    act: take(compute, sorted, maxOf(all.map(({ down }) => down.in))),
    y: take(compute, sorted, maxOf(all.map(({ up }) => up.in))),
    dweights: take("f32", rows, maxOf(all.map(({ perToken }) => perToken))),
    dlogits: take(compute, rows, maxOf(all.map(({ count }) => count))),
  };
}

/** The memory of a layer's experts, cut to the rows of the pass. */
function memoryOf(of: Experts, pass: LayerPass) {
  const { logits, routes, gateUp } = pass.experts(of.to);
  const { rows } = pass.batch;
  const sizes = sizesOf(of, rows, pass.slots);
  const tile = expertTile(pass.device);
  const sorted = sortedRows(sizes, tile);
  const { act, y, dweights, dlogits } = pass.work.experts!;
  const shaped = (t: Tensor, ...shape: number[]): Tensor => ({ ...t, shape });
  return {
    logits: firstRows(logits, rows),
    routes: cutRoutes(routes, sizes, tile),
    gateUp: firstRows(gateUp, sorted),
    act: shaped(act, sorted, of.down.in),
    y: shaped(y, sorted, of.up.in),
    dweights: shaped(dweights, rows, of.perToken),
    dlogits: shaped(dlogits, rows, of.count),
  };
}

/** Up to the activation: what a backward pass reads, too. */
export function expertsInside(of: Experts, pass: LayerPass): void {
  const { device, batch } = pass;
  const { router, up } = pass.expertWeights();
  const correction = of.correction === null ? null : pass.factor(of.correction);
  const { logits, routes, gateUp } = memoryOf(of, pass);
  const x = pass.value(of.from);
  linearForward(device, { x, ...router, residual: null, y: logits, lora: null });
  const { bounds, tileAdapter } = batch;
  route(device, { logits, correction, router: of.router, bounds, tileAdapter, adapters: pass.slots, routes });
  expertsForward(device, { x, gather: true, routes, ...up, y: gateUp, lora: null });
}

export function expertsPassForward(of: Experts, pass: LayerPass): void {
  expertsInside(of, pass);
  const { device } = pass;
  const { routes, gateUp, act, y } = memoryOf(of, pass);
  expertActForward(device, { gateUp, act, kind: of.activation, routes });
  expertsForward(device, { x: act, gather: false, routes, ...pass.expertWeights().down, y, lora: null });
  const residual = of.residual === null ? null : pass.value(of.residual);
  combineForward(device, { y, routes, residual, out: pass.value(of.to) });
}

export function expertsPassBackward(of: Experts, pass: LayerPass): void {
  const dx = pass.gradient(of.from);
  if (!dx) return;
  const { device } = pass;
  const { router, up, down } = pass.expertWeights();
  const { logits, routes, gateUp, act: dact, y: dxs, dweights, dlogits } = memoryOf(of, pass);
  const dout = pass.gradient(of.to)!;
  expertsBackward(device, { dy: dout, gather: true, routes, weight: down.weight, dx: dact, lora: null });
  expertActBackward(device, { dact, gateUp, kind: of.activation, routes, dgateUp: gateUp, dweights });
  if (down.bias) biasWeightGrad(device, { dout, bias: down.bias, routes, dweights });
  expertsBackward(device, { dy: gateUp, gather: false, routes, weight: up.weight, dx: dxs, lora: null });
  combineBackward(device, { dxs, routes, adds: pass.program.adding.has(of), dx });
  routeBackward(device, { logits, router: of.router, routes, dweights, dlogits });
  const added = pass.added(of.up.in);
  linearBackward(device, { dy: dlogits, weight: router.weight, dx: added, lora: null });
  addTo(device, { x: added, y: dx });
}
