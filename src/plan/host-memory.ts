// The memory of the machines that stages on GPUs are in: what of the base model stays there, and streams between layers that
// wait there.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted, formatBytes } from "../base/units.ts";
import { hostNeed } from "../engine/stage-buffers.ts";
import { linearElements } from "../families/linears.ts";
import { stageHostBytes, stageStreamBytes } from "./memory.ts";
import type { StagePlan } from "./plan.ts";

type Placed = { readonly device: DeviceReport & { readonly host: string } };

/** The share of a machine's free memory that what a run brings there may take. */
export const HOST_SHARE = 0.9;

/** Of all stages together; 0 on CPUs, whose memory is the device's. */
export const totalHostBytes = (spec: ModelSpec, stages: readonly Placed[]): number =>
  sum(stages.map(({ device }) => stageHostBytes(spec, device)));

/** Streams between layers, of all stages together. */
export const totalStreamBytes = (spec: ModelSpec, stages: readonly StagePlan[]): number =>
  sum(stages.map(({ layerRange, sizes, device }) => stageStreamBytes(spec, layerRange, sizes, device)));

const freeOf = ({ device }: Placed): number => device.hostFreeBytes ?? Number.POSITIVE_INFINITY;
const ofHost = (host: string): string => (host === "" ? "" : ` of ${host}`);

/**
 * Operations of a forward pass in which a byte leaves for the host: what a GPU does in a second, over what its bus carries.
 * Of a Hopper 630 TFLOP/s in steady work over 55 GB/s, of an Ampere about as much.
 */
const OPERATIONS_PER_BYTE = 11_500;

/**
 * Layers of a stage whose attention's input may wait in host memory next to the streams between layers: as many as leave while
 * the forward pass computes, and as the host has room for. `share`: of the free memory, where stages share a machine.
 */
export function hostInputsOf(
  spec: ModelSpec,
  { layerRange, sizes, device }: Pick<StagePlan, "layerRange" | "sizes" | "device">,
  share: number,
): number {
  const need = hostNeed(device, spec, layerRange, sizes);
  if (!need || need.input === 0) return 0;
  const elements = linearElements(spec) * ((layerRange.to - layerRange.from) / spec.layers);
  const leaves = (2 * elements * sizes.rows) / OPERATIONS_PER_BYTE;
  const free = (Math.max(0, freeOf({ device }) - stageHostBytes(spec, device)) * HOST_SHARE * share) / sizes.inFlight;
  const most = Math.floor((Math.min(leaves, free) - need.streams) / need.input);
  return Math.max(0, Math.min(need.attending, most));
}

/** Throws a RequestError, `plan.host`, where a machine has not as much free as the stages on it take. */
export function checkHostMemory(spec: ModelSpec, stages: readonly Placed[]): void {
  for (const [host, on] of Map.groupBy(stages, ({ device }) => device.host)) {
    const [needed, free] = [totalHostBytes(spec, on), freeOf(on[0]!)];
    if (needed <= free) continue;
    throw new RequestError(
      "plan.host",
      `${on.length === 1 ? "the stage needs" : `${on.length} stages need`} ${formatBytes(needed)} of host memory${ofHost(host)} for the embeddings of its layers; ${formatBytes(free)} are free`,
      on.length === 1
        ? "free memory of the machine, or give its container more"
        : "use fewer stages: each has these embeddings",
    );
  }
}

/** What streams between layers lack of a machine's memory, for an error; null where it suffices, or none wait there. */
export function streamLack(spec: ModelSpec, stages: readonly StagePlan[]): string | null {
  for (const [host, on] of Map.groupBy(stages, ({ device }) => device.host)) {
    const needed = totalStreamBytes(spec, on);
    const free = Math.max(0, freeOf(on[0]!) - totalHostBytes(spec, on)) * HOST_SHARE;
    if (needed === 0 || needed <= free) continue;
    return `${formatBytes(needed)} of host memory${ofHost(host)} for streams between layers (run.recomputation is "offload"), which has ${formatBytes(free)} for them`;
  }
  return null;
}

/** Throws a RequestError, `plan.host`, where a machine lacks memory for the streams of these stages, whose passes are least. */
export function requireStreams(spec: ModelSpec, stages: readonly StagePlan[], tokensPerMicrobatch: number): void {
  const lack = streamLack(spec, stages);
  if (lack === null) return;
  const rows = stages[0]!.sizes.rows;
  throw new RequestError(
    "plan.host",
    `the run needs ${lack}`,
    rows > tokensPerMicrobatch
      ? `lower max_length: the longest row has ${counted(rows, "token")}; or set run.recomputation to "full", or free memory of the machine`
      : `lower run.tokens_per_microbatch (${tokensPerMicrobatch}), set run.recomputation to "full", or free memory of the machine`,
  );
}
