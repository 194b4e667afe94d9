// Random weights, for runs that measure and need no model's own: the same numbers on every device.

import { F, L, native, P, U } from "../../ffi/native.ts";
import { sizeOf } from "../base/shape.ts";
import type { Device, Tensor } from "../device/device.ts";
import { cdiv, op } from "./op.ts";

const c = native({ random_fill: { args: [P, L, U, F], returns: "void" } });

type Fill = { readonly out: Tensor; readonly seed: number; readonly scale: number };

/**
 * out[i] = ((bits(i) >>> 8) / 2^23 - 1) * scale, uniform in [-scale, scale), for out c[N]: bits(i) = mix(mix(mix(seed) ^
 * high) ^ low) with the mix of base/rng.ts and i = high * 2^32 + low. `seed` is a 32-bit number, `scale` an f32. The first
 * factor is exact and the product is rounded once (to bf16 once more), so all devices make the same numbers: a model's random
 * weights.
 */
const fill = op<Fill>(
  "random_fill",
  { out: "c N" },
  {
    cpu: ({ out, seed, scale }) => c.random_fill(out.ptr, sizeOf(out.shape), seed >>> 0, scale),
    cuda: ({ out, seed, scale }, gpu) => {
      const kernel = gpu.kernel("random_fill");
      const size = sizeOf(out.shape);
      gpu.launch(kernel, [cdiv(size, kernel.constant("BLOCK"))], { out, size, seed: seed | 0, scale });
    },
  },
);

/** Fills a contiguous tensor of any shape, in the order of its elements. */
export const randomFill = (device: Device, { out, ...how }: Fill): void =>
  fill(device, { out: { ...out, shape: [sizeOf(out.shape)] }, ...how });
