// DoRA (Liu et al. 2024): a weight's rows have trained lengths, and a LoRA turns them.
//
//     y  = g z + bias + residual,   z = W x + scale B A drop(x),   g = m / norm,   norm = |W + scale B A| of each row
//     dz = g dy,                    dm = sum over rows of dy z / norm
//
// The norm counts as a constant in the backward pass (section 4.3 of the paper), as in PEFT. All behind dz is LoRA's. With dropout PEFT
// drops the input of its term (g - 1) W x, too; here W x sees all of x, so the two agree without dropout. z is kept for the backward
// pass, like all products of matrices; with full recomputation a layer's are shared, and that of the down projection is made again.
//
// What a pass computes for adapters without magnitudes is what it computes without this file: `forward` writes the tiles of DoRA
// adapters alone.

import { invariant } from "../base/errors.ts";
import type { Group } from "../base/spec.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { Kernels } from "../device/kernels.ts";
import type { Weight } from "../device/packed.ts";
import { doraBackward, doraForward, doraNorm } from "../ops/dora.ts";
import { linearForward } from "../ops/linear.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import type { TargetGroup } from "./target-group.ts";

/** Whose rows a pass has, for each group: no DoRA adapter's that has a target there, some, or all. */
export type DoraPresence = { readonly decomposed: Readonly<Record<Group, "none" | "some" | "all">> };
/** Where z is: kept since the forward pass, or scratch. */
export type Product = { readonly kept: Tensor | null; readonly scratch: Tensor | null };
type Rows = { readonly tileAdapter: Tensor };
type Low = NonNullable<Kernels["linear_forward"]["lora"]>;

/** z cut to a product's shape. */
const cut = (z: Tensor, like: Tensor): Tensor => ({ ...z, shape: like.shape });

/** Writes the rows of DoRA adapters in y, and the product in `z`, which is of at least y's size. */
export function forward(
  device: Device,
  { magnitudes }: TargetGroup,
  { tileAdapter }: Rows,
  { weight, bias }: { readonly weight: Weight; readonly bias: Tensor | null },
  io: { readonly x: Tensor; readonly y: Tensor; readonly residual: Tensor | null; readonly lora: Low },
  z: Tensor,
): void {
  const { x, y, residual, lora } = io;
  invariant(residual?.ptr !== y.ptr, "DoRA reads the residual after y was written");
  const product = cut(z, y);
  linearForward(device, { x, weight, bias: null, residual: null, y: product, lora });
  const { gain, decomposed } = magnitudes!;
  doraForward(device, { z: product, bias, residual, gain, decomposed, y, tileAdapter });
}

/** Adds dm to the bank's gradients and returns dz, which lies where z was; the rows of other adapters are dy's. */
export function backward(
  device: Device,
  { magnitudes }: TargetGroup,
  { tileAdapter }: Rows,
  weight: Weight,
  { x, dy, lora }: { readonly x: Tensor; readonly dy: Tensor; readonly lora: Low },
  { kept, scratch }: Product,
): Tensor {
  const product = cut((kept ?? scratch)!, dy);
  if (!kept) linearForward(device, { x, weight, bias: null, residual: null, y: product, lora });
  const { dm, gain, inverse, decomposed } = magnitudes!;
  doraBackward(device, { dy, z: product, gain, inverse, decomposed, dm, tileAdapter });
  return product;
}

/** Computes the gains of the adapters that have been stepped or written since the last pass: once a step. */
export function refresh(
  device: Device,
  pool: AdapterPool,
  layers: Iterable<readonly [layer: number, weights: Readonly<Record<Group, { readonly weight: Weight }>>]>,
): void {
  const stale = pool.takeStale("magnitudes");
  if (!stale) return;
  for (const [layer, linears] of layers)
    for (const group of Object.keys(linears) as Group[]) {
      const site = pool.site(layer, group);
      if (!site?.magnitudes) continue;
      const { a, b, scale, ranks, firstColumn } = site;
      const { m, gain, inverse } = site.magnitudes;
      doraNorm(device, { weight: linears[group].weight, a, b, scale, ranks, firstColumn, m, gain, inverse, stale });
    }
}
