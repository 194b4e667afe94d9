// What of an adapter stays as it began has no gradient.

import { elementsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { GROUPS } from "../../families/linears.ts";
import type { Place } from "../../methods/layout.ts";
import { trainedAt } from "../../methods/placement.ts";
import { type Factor, frozenIn } from "../../methods/registry.ts";
import type { HeldAdapter } from "./held-adapter.ts";

/** Makes the gradients of frozen tensors and ranks zero. */
export function clearFrozen(device: Device, { adapter, layout }: HeldAdapter, grads: Tensor): void {
  const clear = ({ offset, rows, columns }: Place, from = 0) =>
    device.zero(elementsFrom(grads, offset + from * columns, (rows - from) * columns));
  const frozen = frozenIn(adapter.method);
  for (const tensor of layout.tensors) if (frozen.includes(tensor.factor as Factor)) clear(tensor);
  if (adapter.trainedRank === undefined) return;
  for (const { layer, group, products } of layout.sites)
    for (const [g, product] of products.entries())
      if (product) for (const of of [product.A, product.B]) clear(of, trainedAt(adapter, layer, GROUPS[group][g]!));
}
