// Launches that may begin before the one before them on their stream ends (programmatic dependent launch).

import { cudaOverlap, LAUNCH_ATTRIBUTE, LAUNCH_CONFIG, PROGRAMMATIC_SERIALIZATION } from "../../../ffi/cuda.ts";
import { addressOf, fixedBytes } from "../../../ffi/memory.ts";
import { environment } from "../../base/env.ts";
import { openExtra } from "./driver.ts";
import type { Kind } from "./manifest.ts";

export type LaunchSizes = {
  readonly grid: readonly [number, number, number];
  readonly threads: number;
  readonly shared: number;
  readonly stream: number;
};

/** Launches a function so, with its parameters at an address; returns a CUresult. */
export type OverlappingLaunch = (kernel: number, sizes: LaunchSizes, parametersAt: number) => number;

/** The oldest CUDA whose graphs keep such launches as what they are. */
const CUDA = 12_030;

/** Null where no kernel waits by itself, or the driver is older. */
export function openOverlappingLaunch(kind: Kind, driverVersion: number): OverlappingLaunch | null {
  if (kind !== "tma" || driverVersion < CUDA || environment("MLORA_KERNELS") === "apart") return null;
  const driver = openExtra(cudaOverlap);
  // The attribute follows the configuration in the same memory, which the view below keeps.
  const memory = fixedBytes(LAUNCH_CONFIG.bytes + LAUNCH_ATTRIBUTE.bytes);
  const [fields, at] = [new DataView(memory.buffer), addressOf(memory)];
  fields.setInt32(LAUNCH_CONFIG.bytes, PROGRAMMATIC_SERIALIZATION, true);
  fields.setInt32(LAUNCH_CONFIG.bytes + LAUNCH_ATTRIBUTE.value, 1, true);
  fields.setBigUint64(LAUNCH_CONFIG.attributes, BigInt(at + LAUNCH_CONFIG.bytes), true);
  fields.setUint32(LAUNCH_CONFIG.attributeCount, 1, true);
  return (kernel, { grid, threads, shared, stream }, parametersAt) => {
    for (const [i, size] of [...grid, threads, 1, 1, shared].entries()) fields.setUint32(4 * i, size, true);
    fields.setBigUint64(LAUNCH_CONFIG.stream, BigInt(stream), true);
    return driver.cuLaunchKernelEx(at, kernel, parametersAt, null);
  };
}
