// Which formats of frozen weights a device can hold.

import { RunError } from "../../base/errors.ts";
import type { WeightFormat } from "../../base/precision.ts";
import type { Device } from "../../device/device.ts";

/**
 * Throws a RunError, `device.precision`, where the device cannot hold the base model so; a plan is made before
 * the device is open.
 */
export function requireFormat({ name, formats }: Device, format: WeightFormat): void {
  if (!formats.includes(format))
    throw new RunError(
      "device.precision",
      `${name} cannot hold the base model in ${format}, only as ${formats.join(", ")}`,
      "int8 and nf4 run everywhere; fp8 and nf4-fp8 need an Ada or Hopper GPU, or a later one",
    );
}
