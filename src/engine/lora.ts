// LoRA (Hu et al. 2021): what it adds to a linear layer, y += scale B A drop(x), and its gradients. What it begins with is init.ts.
//
// An adapter kind is one such file. `io` names the tensors of the group's frozen layer; `batch` says whose rows they are.

import type { Device, Tensor } from "../device/device.ts";
import type { Weight } from "../device/packed.ts";
import { linearBackward, linearForward } from "../ops/linear.ts";
import { loraDown, loraDownGrad, loraUpGrad } from "../ops/lora.ts";
import * as dora from "./dora.ts";
import type { TargetGroup } from "./target-group.ts";

/** Whose rows a micro-batch holds, on the device. */
export type RowTables = {
  readonly tileAdapter: Tensor;
  readonly rowNumber: Tensor;
  readonly dropout: Tensor;
} & dora.DoraPresence;

export type Frozen = { readonly weight: Weight; readonly bias: Tensor | null };

/** y = x W^T + bias + residual + scale B A drop(x); keeps s = A drop(x) for the backward pass. DoRA's product is left in `z`. */
export function forward(
  device: Device,
  site: TargetGroup | null,
  rows: RowTables,
  { weight, bias }: Frozen,
  io: { readonly x: Tensor; readonly s: Tensor; readonly y: Tensor; readonly residual: Tensor | null },
  z: Tensor | null,
): void {
  const { x, s, y, residual } = io;
  if (!site) {
    linearForward(device, { x, weight, bias, residual, y, lora: null });
    return;
  }
  const { tileAdapter } = rows;
  const { b, ranks, scale, firstColumn } = site;
  down(device, site, rows, x, s);
  const low = { s, b, scale, ranks, tileAdapter, firstColumn };
  if (rows.decomposed[site.group] !== "all") linearForward(device, { x, weight, bias, residual, y, lora: low });
  if (rows.decomposed[site.group] !== "none")
    dora.forward(device, site, rows, { weight, bias }, { x, y, residual, lora: low }, z!);
}

/** s = A drop(x) alone, where the output is not wanted again. */
export function down(device: Device, site: TargetGroup, rows: RowTables, x: Tensor, s: Tensor): void {
  loraDown(device, { x, a: site.a, s, ranks: site.ranks, module: site.module, ...rows });
}

/**
 * dx = dy W + drop'(ds A), with dA and dB added to the bank's gradients. `ds` is scratch of s's shape; `dx` null where nobody
 * needs the gradient of the input. `z` is where DoRA's product is, or scratch in which it is made again.
 */
export function backward(
  device: Device,
  site: TargetGroup | null,
  rows: RowTables,
  weight: Weight,
  io: { readonly x: Tensor; readonly s: Tensor; readonly ds: Tensor; readonly dy: Tensor; readonly dx: Tensor | null },
  z: dora.Product,
): void {
  const { x, s, ds, dx } = io;
  let { dy } = io;
  if (!site) {
    if (dx) linearBackward(device, { dy, weight, dx, lora: null });
    return;
  }
  const { tileAdapter } = rows;
  const { a, b, da, db, ranks, scale, firstColumn, module } = site;
  if (rows.decomposed[site.group] !== "none") {
    const low = { s, b, scale, ranks, tileAdapter, firstColumn };
    dy = dora.backward(device, site, rows, weight, { x, dy, lora: low }, z);
  }
  loraUpGrad(device, { dy, s, b, scale, firstColumn, ds, db, ranks, tileAdapter });
  loraDownGrad(device, { x, ds, da, ranks, module, ...rows });
  if (dx) linearBackward(device, { dy, weight, dx, lora: { ds, a, ranks, module, ...rows } });
}
