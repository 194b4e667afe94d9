// What a device is, for those who plan: asked without taking any of its memory.

import { chooseDevice, type DeviceReport } from "../device/open.ts";

/** The device that a recipe's `device` means here. Throws a RequestError where it cannot be had. */
export const describeDevice = (wanted: "auto" | "cpu" | "cuda"): DeviceReport => chooseDevice(wanted);
