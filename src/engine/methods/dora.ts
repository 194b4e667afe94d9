// DoRA (Liu et al. 2024): a weight's rows have trained lengths, and a LoRA turns them.
//
//     y  = g z + bias + residual,   z = W x + scale B A drop(x),   g = m / norm,   norm = |W + scale B A| of each row
//     dz = g dy,                    dm = sum over rows of dy z / norm
//
// The norm counts as a constant in the backward pass (section 4.3 of the paper), as in PEFT. All that follows from dz is
// LoRA's. With dropout PEFT drops the input of its term (g - 1) W x, too; here W x sees all of x, so the two agree without
// dropout. z is kept for the backward pass, like all products of matrices; with full recomputation the layers share it, and
// that of the down projection is made again.
//
// What a pass computes for adapters without magnitudes is what it computes without this file: `forward` writes the tiles of
// DoRA adapters alone.

import { invariant } from "../../base/errors.ts";
import type { Tensor } from "../../device/device.ts";
import { doraBackward, doraForward, doraNorm } from "../../ops/dora.ts";
import { linearForward } from "../../ops/linear.ts";
import type { Computation } from "./computation.ts";

/** z cut to a product's shape. */
const cut = (z: Tensor, like: Tensor): Tensor => ({ ...z, shape: like.shape });

export const dora: Computation = {
  derived: { gain: 1, inverse: 0 }, // m / norm and 1 / norm
  beginsByRefresh: true,
  refresh(device, sites, stale) {
    for (const { site, weight, most } of sites) {
      const { factors, vectors, scale, ranks, firstColumn } = site;
      doraNorm(device, { weight, factors, vectors, scale, ranks, firstColumn, stale, most });
    }
  },
  rows: {
    areGains: true,
    forward(device, { site, present, tileAdapter, weight, bias, x, y, residual, lora }, z) {
      invariant(residual?.ptr !== y.ptr, "DoRA reads the residual after y was written");
      const product = cut(z, y);
      linearForward(device, { x, weight, bias: null, residual: null, y: product, lora });
      doraForward(device, { z: product, bias, residual, vectors: site.vectors, decomposed: present, y, tileAdapter });
    },
    /** dz is where z was. */
    backward(device, { site, present, tileAdapter, weight, x, dy, lora }, { memory, isKept }) {
      const product = cut(memory, dy);
      if (!isKept) linearForward(device, { x, weight, bias: null, residual: null, y: product, lora });
      doraBackward(device, { dy, z: product, vectors: site.vectors, decomposed: present, tileAdapter });
      return product;
    },
  },
};
