// What devices there are, for those who plan and those who ask: found out without taking any of their memory, but for
// measureDevice.

import type { DeviceChoice, DeviceKind, DeviceReport } from "../base/device-report.ts";
import type { Precision } from "../base/precision.ts";
import { chooseDevice, openDevice } from "../device/open.ts";
import { measurePeak } from "./peak.ts";

export { EnergyMeter, type EnergyReading } from "../device/cuda/energy.ts";
export { type Gpus, listGpus } from "../device/cuda/gpus.ts";

/**
 * The device that a recipe's `device` means here, of several GPUs the `ordinal`th. Throws a RequestError where
 * it cannot be had.
 */
export const describeDevice = (wanted: "auto" | DeviceKind, precision: Precision, ordinal = 0): DeviceReport =>
  chooseDevice(wanted, precision, ordinal);

/** Opens a device for some hundred ms, and measures its rate of large products, in FLOP/s. */
export async function measureDevice(choice: DeviceChoice): Promise<number> {
  using device = openDevice(choice);
  return await measurePeak(device);
}
