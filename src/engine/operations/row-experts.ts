// A layer's experts in a pass of rows (row-pass.ts): what experts.ts computes forward, of rows that find their own adapters.

import { rowsFrom } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import { MOST_ROWS } from "../../device/fewrows.ts";
import type { ExpertProduct, Op } from "../../families/definition.ts";
import { type FewRoutes, fewExpertsDown, fewExpertsUp, fewRoute } from "../../ops/fewexperts.ts";
import { fewRowsForward } from "../../ops/fewrows.ts";
import type { LayerPass } from "../layers/layer-pass.ts";

type Experts = Op<"experts">;

export function expertsByRow(of: Experts, pass: LayerPass): void {
  const { device, batch } = pass;
  const { router, up, down } = pass.expertWeights();
  const { logits, routes, gateUp } = pass.experts(of.to);
  const { act, y } = pass.work.experts!;
  const correction = of.correction === null ? null : pass.factor(of.correction);
  const [loraUp, loraDown] = [lowRank(of.up, pass), lowRank(of.down, pass)];
  for (let from = 0; from < batch.rows; from += MOST_ROWS) {
    const rows = Math.min(MOST_ROWS, batch.rows - from);
    const part = (t: Tensor) => rowsFrom(t, from, rows);
    const first = (t: Tensor, count: number, width: number): Tensor => ({ ...t, shape: [count, width] });
    const x = part(pass.value(of.from));
    const chosen = first(logits, rows, of.count);
    fewRowsForward(device, { x, ...router, residual: null, y: chosen, lora: null });
    const own = cut(routes, rows, of.perToken);
    const pairs = rows * of.perToken;
    fewRoute(device, { logits: chosen, correction, router: of.router, bounds: part(batch.bounds), routes: own });
    const shared = { routes: own, rowAdapter: part(batch.rowAdapter!) };
    const acted = first(act, pairs, of.down.in);
    const product = { ...shared, ...up, lora: loraUp, kind: of.activation };
    fewExpertsUp(device, { ...product, x, gateUp: first(gateUp, pairs, gateUp.shape[1]!), act: acted });
    const residual = of.residual === null ? null : part(pass.value(of.residual));
    const to = { y: first(y, pairs, of.up.in), residual, out: part(pass.value(of.to)) };
    fewExpertsDown(device, { ...shared, ...down, lora: loraDown, act: acted, ...to });
  }
}

/** The tables of the first rows. */
function cut(routes: FewRoutes, rows: number, perToken: number): FewRoutes {
  const each = (t: Tensor): Tensor => ({ ...t, shape: [rows, perToken] });
  const { experts, weights, place } = routes;
  return { ...routes, experts: each(experts), weights: each(weights), place: each(place) };
}

/** What the adapters of the pass have in one of the products; null where none has anything. */
function lowRank({ group }: ExpertProduct, pass: LayerPass) {
  const at = pass.adapters(group);
  if (!at) return null;
  const { factors, strides, ranks, scale, firstColumn } = at.site;
  return { span: at.low.span, factors, strides, ranks, scale, firstColumn };
}
