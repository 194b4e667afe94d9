// Adapters that train and do not fit on the devices at once: those that wait for their turn are in host memory.

import { RequestError } from "../base/errors.ts";
import { maxOf, sum } from "../base/shape.ts";
import { formatBytes } from "../base/units.ts";
import type { StageSizes } from "../engine/layers/buffers.ts";
import { mostBytes } from "./adapter-memory.ts";
import { HOST_SHARE } from "./host-memory.ts";
import type { StageDevice } from "./plan.ts";

/** What the plan of a stage has for its adapters. */
export type HostNeed = {
  readonly device: StageDevice;
  /** Bytes of each adapter's block. */
  readonly blocks: readonly number[];
  /** Of adapters on the device, and of all that the stage takes there. */
  readonly blockBytes: number;
  readonly deviceBytes: number;
  /** Of what is in host memory in any case: of the base model, and streams between layers. */
  readonly otherBytes: number;
};

/**
 * Room for one adapter that leaves the device while another has not come yet, whichever they are: with this much of the host's
 * memory to spare some adapter can always move.
 */
const spare = (largest: number): number => 2 * largest;

/** Bytes of adapters that may train at once on a stage, the largest of which takes `largest`. */
export const admissibleBytes = (
  { blockBytes, hostBytes }: Pick<StageSizes, "blockBytes" | "hostBytes">,
  largest: number,
): number => (hostBytes === 0 ? blockBytes : blockBytes + Math.max(0, hostBytes - spare(largest)));

/** Bytes of host memory with which any `count` adapters of a stage train at once; 0 where all are on the device. */
export function hostBytesOf({ blocks, blockBytes }: HostNeed, count: number): number {
  const waiting = mostBytes(blocks, count) - blockBytes;
  return waiting <= 0 ? 0 : waiting + spare(maxOf(blocks));
}

/** What the host memory of each machine lacks for `count` adapters; null where it suffices. */
function hostLack(stages: readonly HostNeed[], count: number): string | null {
  for (const on of Map.groupBy(stages, ({ device }) => device.host).values()) {
    const needed = sum(on.map((stage) => hostBytesOf(stage, count)));
    const own = sum(on.map(({ device, deviceBytes, otherBytes }) => otherBytes + (device.kind === "cpu" ? deviceBytes : 0)));
    const given = on.map(({ device }) => device.hostFreeBytes ?? device.freeBytes);
    const free = Math.max(0, Math.min(...given) - own) * HOST_SHARE;
    if (needed <= free) continue;
    const { host } = on[0]!.device;
    return `${formatBytes(needed)} of host memory${host === "" ? "" : ` of ${host}`}, which has ${formatBytes(free)} for it`;
  }
  return null;
}

/** Adapters that train at once, at most `wanted`, where `resident` of them fit on the devices. */
export function countWithHost(stages: readonly HostNeed[], resident: number, wanted: number): number {
  let [good, bad] = [resident, wanted + 1];
  while (bad - good > 1) {
    const middle = Math.floor((good + bad) / 2);
    if (hostLack(stages, middle) === null) good = middle;
    else bad = middle;
  }
  return good;
}

/** Throws a RequestError, `plan.host_memory`, where `wanted` adapters are asked for and have no room to wait. */
export function requireHost(stages: readonly HostNeed[], resident: number, wanted: number): void {
  const lack = hostLack(stages, wanted);
  if (lack === null) return;
  throw new RequestError(
    "plan.host_memory",
    `${wanted} adapters are to train at once: ${resident} fit on the devices, and the others need ${lack}`,
    `lower run.slots to ${countWithHost(stages, resident, wanted)}: the others then wait for one to end`,
  );
}
