// Which device a run gets, and what can be known of it before it is opened.

import { readFileSync } from "node:fs";
import { cpus, freemem, totalmem } from "node:os";
import { RequestError } from "../base/errors.ts";
import { ROW_TILE } from "./cpu/linear.ts";
import { CpuDevice } from "./cpu.ts";
import type { Device } from "./device.ts";

export type DeviceKind = "cpu" | "cuda";

export type DeviceReport = {
  readonly kind: DeviceKind;
  readonly name: string;
  readonly compute: "f32" | "bf16";
  readonly rowTile: number;
  readonly rankTile: number;
  readonly totalBytes: number;
  readonly freeBytes: number;
};

/** Memory that a new program may take: what the kernel says is available, page cache included. */
function availableMemory(): number {
  try {
    const [, kib] = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8")) ?? [];
    return kib === undefined ? freemem() : Number(kib) * 1024;
  } catch {
    return freemem();
  }
}

/** The device that `wanted` means on this machine. A RequestError says why it cannot be had. */
export function chooseDevice(wanted: "auto" | DeviceKind): DeviceReport {
  if (wanted === "cuda")
    throw new RequestError("device.cuda", "this build of mlora has no CUDA device yet", 'set device to "cpu" or "auto"');
  return {
    kind: "cpu",
    name: `${cpus()[0]?.model.trim() ?? "cpu"}, ${cpus().length} cores`,
    compute: "f32",
    rowTile: ROW_TILE,
    rankTile: 1,
    totalBytes: totalmem(),
    freeBytes: availableMemory(),
  };
}

export function openDevice(kind: DeviceKind): Device {
  switch (kind) {
    case "cpu":
      return new CpuDevice();
    case "cuda":
      throw new RequestError("device.cuda", "this build of mlora has no CUDA device yet", 'set device to "cpu" or "auto"');
    default:
      return kind satisfies never;
  }
}
