// Random weights, for runs that measure and need no model's own: the same numbers on every device.

import { sizeOf } from "../base/shape.ts";
import type { Device } from "../device/device.ts";
import type { Kernels } from "../device/kernels.ts";
import { op } from "./op.ts";

const fill = op("random_fill", { out: "c N" });

/** Fills a contiguous tensor of any shape, in the order of its elements. */
export const randomFill = (device: Device, { out, ...how }: Kernels["random_fill"]): void =>
  fill(device, { out: { ...out, shape: [sizeOf(out.shape)] }, ...how });
