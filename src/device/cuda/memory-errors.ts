// What is said where a GPU, or its machine, has no more memory.

import { RunError } from "../../base/errors.ts";
import { formatBytes } from "../../base/units.ts";

export const noDeviceMemory = (
  gpu: string,
  bytes: number,
  why: string,
  { total, free }: { readonly total: number; readonly free: number },
): RunError =>
  new RunError(
    "device.memory",
    `no memory on ${gpu}: ${formatBytes(bytes)} for ${why}, ${formatBytes(free)} of ${formatBytes(total)} free`,
    "another program may use this GPU: see nvidia-smi",
  );

export const noPinnedMemory = (gpu: string, bytes: number, why: string): RunError =>
  new RunError(
    "device.memory",
    `no memory of this machine for ${gpu}: ${formatBytes(bytes)} for ${why}`,
    "a container's limit, or that of pinned memory, may be lower than the machine's memory",
  );
