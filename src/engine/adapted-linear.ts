// A group of linears with the adapters on it: y += scale B A drop(x) (LoRA, Hu et al. 2021) and its gradients, and the rows
// that methods compute themselves.
//
// `io` names the tensors of the group's frozen layer; `rows` says whose rows they are.

import type { Device, Tensor } from "../device/device.ts";
import type { Weight } from "../device/packed.ts";
import { PEFT_METHODS, type PeftMethod } from "../methods/registry.ts";
import { linearBackward, linearForward } from "../ops/linear.ts";
import { loraDown, loraDownGrad, loraUpGrad } from "../ops/lora.ts";
import type { Products } from "./buffers.ts";
import type { Frozen, Presence } from "./methods/computation.ts";
import { COMPUTATIONS } from "./methods/registry.ts";
import type { TargetGroup } from "./target-group.ts";

/** Whose rows a micro-batch holds, on the device. */
export type RowTables = {
  readonly tileAdapter: Tensor;
  readonly rowNumber: Tensor;
  readonly dropout: Tensor;
  readonly presence: Presence;
};

/** Methods that compute rows themselves. Asked at each launch, so that nothing is made where there is none. */
const ROW_METHODS = PEFT_METHODS.filter((method) => COMPUTATIONS[method].rows);
const NONE: readonly PeftMethod[] = [];

/** The methods that have rows of their own in this pass and group. */
function computing({ presence }: RowTables, { group, methods }: TargetGroup): readonly PeftMethod[] {
  let found: readonly PeftMethod[] = NONE;
  for (const method of ROW_METHODS)
    if (methods[method] && (presence[method]?.[group] ?? "none") !== "none") found = [...found, method];
  return found;
}

/**
 * y = x W^T + bias + residual + scale B A drop(x); keeps s = A drop(x) for the backward pass. Whole products that methods
 * need are left in `z`.
 */
export function forward(
  device: Device,
  site: TargetGroup | null,
  rows: RowTables,
  { weight, bias }: Frozen,
  io: { readonly x: Tensor; readonly s: Tensor; readonly y: Tensor; readonly residual: Tensor | null },
  z: Products,
): void {
  const { x, s, y, residual } = io;
  if (!site) {
    linearForward(device, { x, weight, bias, residual, y, lora: null });
    return;
  }
  const { tileAdapter, presence } = rows;
  const { b, ranks, scale, firstColumn, group } = site;
  down(device, site, rows, x, s);
  const low = { s, b, scale, ranks, tileAdapter, firstColumn };
  const methods = computing(rows, site);
  if (methods.every((method) => presence[method]![group] !== "all"))
    linearForward(device, { x, weight, bias, residual, y, lora: low });
  for (const method of methods) {
    const of = { site, own: site.methods[method]!, tileAdapter, weight, bias, x, y, residual, lora: low };
    COMPUTATIONS[method].rows!.forward(device, of, z[method]!);
  }
}

/** s = A drop(x) alone, where the output is not wanted again. */
export function down(device: Device, site: TargetGroup, rows: RowTables, x: Tensor, s: Tensor): void {
  loraDown(device, { x, a: site.a, s, ranks: site.ranks, module: site.module, ...rows });
}

/**
 * dx = dy W + drop'(ds A), with dA and dB added to the pool's gradients. `ds` is scratch of s's shape; `dx` null where the
 * gradient of the input is not needed. `z`: whole products since the forward pass, or memory in which they are made again.
 */
export function backward(
  device: Device,
  site: TargetGroup | null,
  rows: RowTables,
  weight: Weight,
  io: { readonly x: Tensor; readonly s: Tensor; readonly ds: Tensor; readonly dy: Tensor; readonly dx: Tensor | null },
  z: { readonly kept: Products; readonly scratch: Products },
): void {
  const { x, s, ds, dx } = io;
  let { dy } = io;
  if (!site) {
    if (dx) linearBackward(device, { dy, weight, dx, lora: null });
    return;
  }
  const { tileAdapter } = rows;
  const { a, b, da, db, ranks, scale, firstColumn, module } = site;
  const low = { s, b, scale, ranks, tileAdapter, firstColumn };
  for (const method of computing(rows, site)) {
    const kept = z.kept[method];
    const product = { memory: (kept ?? z.scratch[method])!, isKept: kept !== undefined };
    const of = { site, own: site.methods[method]!, tileAdapter, weight, x, dy, lora: low };
    dy = COMPUTATIONS[method].rows!.backward(device, of, product);
  }
  loraUpGrad(device, { dy, s, b, scale, firstColumn, ds, db, ranks, tileAdapter });
  loraDownGrad(device, { x, ds, da, ranks, module, ...rows });
  if (dx) linearBackward(device, { dy, weight, dx, lora: { ds, a, ranks, module, ...rows } });
}
