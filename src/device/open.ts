// Which device a run gets, and what can be known of it before it is opened.

import { RequestError } from "../base/errors.ts";
import { memory, requireProcessor } from "../base/machine.ts";
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

/** The device that `wanted` means on this machine. A RequestError says why it cannot be had. */
export function chooseDevice(wanted: "auto" | DeviceKind): DeviceReport {
  if (wanted === "cuda")
    throw new RequestError("device.cuda", "this build of mlora has no CUDA device yet", 'set device to "cpu" or "auto"');
  const { model, cores } = requireProcessor();
  const { totalBytes, availableBytes: freeBytes } = memory();
  const name = `${model}, ${cores} cores`;
  return { kind: "cpu", name, compute: "f32", rowTile: ROW_TILE, rankTile: 1, totalBytes, freeBytes };
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
