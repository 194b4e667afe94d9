// A group of linears with the adapters on it: y += scale B A drop(x) (LoRA, Hu et al. 2021) and its gradients, and the rows
// that methods compute themselves.
//
// `io` names the tensors of the group's frozen layer; `rows` says whose rows they are.

import { invariant } from "../../base/errors.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Weight } from "../../device/packed.ts";
import type { PeftMethod } from "../../methods/registry.ts";
import { fewRowsForward, type RowAdapters } from "../../ops/fewrows.ts";
import { type LinearInput, type LowRank, linearBackward, linearForward, type OutputGradient } from "../../ops/linear.ts";
import { type DownInput, loraDown, loraDownGrad, loraUpGrad } from "../../ops/lora.ts";
import type { AdapterWork, LowRows } from "../layers/batch.ts";
import type { Products } from "../layers/buffers.ts";
import type { Frozen } from "../methods/computation.ts";
import { COMPUTATIONS } from "../methods/registry.ts";
import { siteKey, type TargetGroup } from "./target-group.ts";

/** Whose rows a micro-batch holds, on the device, and what their adapters have it compute. */
export type RowTables = { readonly tileAdapter: Tensor; readonly rowNumber: Tensor; readonly dropout: Tensor } & AdapterWork;

/** A target group with the adapters on it, and the rows of s there. */
type Adapted = { readonly site: TargetGroup; readonly low: LowRows };

/** The methods that have rows of their own in this pass at a target group. */
function computing({ presence }: RowTables, site: TargetGroup): readonly PeftMethod[] {
  if (presence.size === 0) return NONE; // asked at each launch: nothing is made where there is none
  return [...presence.keys()].filter((method) => (presence.get(method)!.get(siteKey(site)) ?? "none") !== "none");
}
const NONE: readonly PeftMethod[] = [];

/** Whether a method has rows of its own in this pass at a target group: its gradients need the group's input itself. */
export const needsInput = (rows: RowTables, { site }: Adapted): boolean => computing(rows, site).length > 0;

/** Makes A and B of the adapters in the pass that store neither. */
function expand(device: Device, { expanding }: Pick<AdapterWork, "expanding">, site: TargetGroup): void {
  for (const [method, of] of expanding) COMPUTATIONS[method].expansion!.expand(device, site, of);
}

/** The adapters of rows that find their own, whose factors are made where they are not stored. */
export const rowAdapters = (device: Device, { site, low }: Adapted, rows: AdapterWork): RowAdapters => {
  const { vectors, present } = site;
  const rowAdapter = rows.rowAdapter!;
  expand(device, rows, site);
  return { ...site, span: low.span, rowAdapter, gains: low.hasGains ? { vectors, decomposed: present.dora! } : null };
};

/**
 * y = x W^T + bias + residual + scale B A drop(x); keeps s = A drop(x) for the backward pass. Whole products that methods
 * need are left in `z`.
 */
export function forward(
  device: Device,
  at: Adapted | null,
  rows: RowTables,
  { weight, bias }: Frozen,
  io: LinearInput & { readonly s: Tensor; readonly y: Tensor; readonly residual: Tensor | null },
  z: Products,
): void {
  const { s, y, residual } = io;
  const { rowAdapter } = rows;
  if (!("x" in io)) {
    linearForward(device, { gateUp: io.gateUp, weight, bias, residual, y, lora: null });
    return;
  }
  const { x } = io;
  if (rowAdapter) {
    const lora = at && rowAdapters(device, at, rows);
    fewRowsForward(device, { x, weight, bias, residual, y, lora });
    return;
  }
  if (!at) {
    linearForward(device, { x, weight, bias, residual, y, lora: null });
    return;
  }
  const { site } = at;
  const { tileAdapter, presence } = rows;
  down(device, at, rows, x, s);
  const lora = lowOf(at, rows, s);
  const methods = computing(rows, site);
  if (methods.every((method) => presence.get(method)!.get(siteKey(site)) !== "all"))
    linearForward(device, { x, weight, bias, residual, y, lora });
  for (const method of methods) {
    const of = { site, present: site.present[method]!, tileAdapter, weight, bias, x, y, residual, lora };
    COMPUTATIONS[method].rows!.forward(device, of, z[method]!);
  }
}

const lowOf = ({ site, low }: Adapted, { tileAdapter }: RowTables, s: Tensor): LowRank => {
  const { factors, ranks, scale, firstColumn } = site;
  return { s, lowAt: low.lowAt, span: low.span, factors, scale, ranks, tileAdapter, firstColumn };
};

/** s = A drop(x) alone, where the output is not wanted again. */
export function down(device: Device, { site, low }: Adapted, rows: RowTables, x: Tensor, s: Tensor): void {
  const { factors, ranks, module } = site;
  const { tileAdapter, rowNumber, dropout } = rows;
  expand(device, rows, site);
  loraDown(device, { x, s, lowAt: low.lowAt, span: low.span, factors, ranks, module, tileAdapter, rowNumber, dropout });
}

/**
 * dx = dy W + drop'(ds A), with dA and dB added to the pool's gradients. `ds` is scratch of s's shape; `dx` null where the
 * gradient of the input is not needed; `input` is x where a method needs it. `z`: whole products since the forward pass, or
 * memory in which they are made again.
 */
export function backward(
  device: Device,
  at: Adapted | null,
  rows: RowTables,
  weight: Weight,
  io: OutputGradient & {
    readonly input: DownInput;
    readonly s: Tensor;
    readonly ds: Tensor;
    readonly dx: Tensor | null;
  },
  z: { readonly kept: Products; readonly scratch: Products },
): void {
  const { input, s, ds, dx } = io;
  if (!at || !("dy" in io)) {
    if (dx)
      linearBackward(device, { ...("dy" in io ? { dy: io.dy } : { dh: io.dh, gateUp: io.gateUp }), weight, dx, lora: null });
    return;
  }
  let { dy } = io;
  const { site } = at;
  const { tileAdapter, rowNumber, dropout, expanding } = rows;
  const { factors, ranks, module } = site;
  const low = lowOf(at, rows, s);
  expand(device, rows, site);
  for (const method of computing(rows, site)) {
    const kept = z.kept[method];
    const product = { memory: (kept ?? z.scratch[method])!, isKept: kept !== undefined };
    invariant("x" in input, `${method} reads its input itself`);
    const of = { site, present: site.present[method]!, tileAdapter, weight, x: input.x, dy, lora: low };
    dy = COMPUTATIONS[method].rows!.backward(device, of, product);
  }
  loraUpGrad(device, { dy, ds, ...low });
  const lora = { ds, lowAt: low.lowAt, span: low.span, factors, ranks, module, tileAdapter, rowNumber, dropout };
  loraDownGrad(device, { ...input, ...lora });
  if (dx) linearBackward(device, { dy, weight, dx, lora });
  for (const [method, of] of expanding) COMPUTATIONS[method].expansion!.reduce(device, site, of);
}
