// How much memory a stage takes, by part. The model's own sizing functions are asked, so that what is predicted and what is
// taken cannot drift apart; nothing here touches a device.

import type { DeviceReport } from "../base/device-report.ts";
import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { Device } from "../device/device.ts";
import type { StageSizes } from "../engine/layers/buffers.ts";
import { hostStreamBytes, stageBufferBytes, stageScratchBytes } from "../engine/stage-buffers.ts";
import { hostWeightBytes, type StageLayers, weightBytes } from "../engine/weights/weights.ts";
import { linearShapes, linearsIn } from "../families/linears.ts";

/** A GPU gives memory that processes share in pages of this size. */
const LINK_ALIGN = 2 ** 12;

/**
 * Messages that a link holds between a sender and a receiver that is not there yet, in each direction; one more for
 * evaluations.
 */
export const SEND_BUFFERS = 2;

/** Room for what a neighbour sends: the activations or gradients of a pass, a slot each. */
export const linkCapacity = (spec: ModelSpec, { rows }: StageSizes, compute: Device["compute"]) => ({
  slots: SEND_BUFFERS + 1,
  slotBytes: rows * spec.hidden * bytesOf(compute),
});

/** Kernels on GPUs read 16 bytes of bf16 at once: widths of linears are multiples of this. */
const WIDTH = 8;

/** Features of a head of which some are rotated that kernels on GPUs take (kernels/triton/rope.py). */
const WIDEST_LATENT = 256;

/** Experts of a layer and of a token that kernels on GPUs choose from (kernels/triton/route.py): BLOCK and SLOTS. */
const MOST_ON_GPUS = { count: 512, perToken: 16 };

/** Refuses, with a RequestError, what a device does not compute. */
export function requireKernels(spec: ModelSpec, { kind, name }: Pick<DeviceReport, "kind" | "name">): void {
  if (kind !== "cuda") return;
  const refuse = (code: string, what: string) => {
    throw new RequestError(code, `${what}; the device is ${name}`, 'set device to "cpu"');
  };
  if (spec.latent !== null) {
    const { rank, queryRank, heads } = spec.latent;
    const sizes = [heads.plain, heads.rotated, heads.value, rank, queryRank ?? WIDTH];
    if (sizes.some((size) => size % WIDTH !== 0) || spec.headDim > WIDEST_LATENT)
      refuse(
        "device.widths",
        `the base model's heads have ${heads.plain} plain and ${heads.rotated} rotated features and ${heads.value} of values, of latents of ${rank}, ` +
          `expected multiples of ${WIDTH}, and up to ${WIDEST_LATENT} features on a GPU`,
      );
  }
  if (spec.mamba !== null) {
    const { heads, headDim, groups, stateDim } = spec.mamba.heads;
    const [group, keys] = [(heads * headDim) / groups, 2 * groups * stateDim];
    if (group % WIDTH !== 0 || keys % WIDTH !== 0)
      refuse(
        "device.widths",
        `the base model's Mamba layers have groups of ${group} features, and ${keys} of B and C, expected multiples of ${WIDTH} on a GPU`,
      );
  }
  for (const linear of linearsIn(spec))
    for (const { in: width, out } of linearShapes(spec, linear))
      if (width % WIDTH !== 0 || out % WIDTH !== 0)
        refuse(
          "device.widths",
          `the base model's ${linear} has ${counted(out, "row")} of ${width}, expected multiples of ${WIDTH} on a GPU`,
        );
  if (spec.experts === null) return;
  const { count, perToken } = spec.experts;
  if (count % WIDTH !== 0 || count > MOST_ON_GPUS.count || perToken > MOST_ON_GPUS.perToken)
    refuse(
      "device.experts",
      `the base model chooses ${perToken} of ${count} experts, expected at most ${MOST_ON_GPUS.perToken} of a multiple of ${WIDTH} up to ${MOST_ON_GPUS.count} on a GPU`,
    );
}

export type MemoryParts = {
  readonly weights: number;
  readonly adapters: number; // parameters, gradients, moments, and the tables by which they are found
  readonly activations: number;
  readonly workspace: number; // what every pass overwrites, tables and the kernels' scratch among it
  readonly head: number; // target rows and a chunk of logits
  readonly links: number; // slots that the stages before and after fill
  readonly cache?: number; // keys and values of generation
};

/** Bytes that a stage takes of its machine's memory next to a GPU's: tables of which it reads a row for each token. */
export const stageHostBytes = (spec: ModelSpec, device: Pick<Device, "kind" | "compute">): number =>
  device.kind === "cpu" ? 0 : hostWeightBytes(spec, device.compute);

/** Bytes of host memory that streams between a stage's layers wait in, of all its packed batches in flight. */
export const stageStreamBytes = (
  spec: ModelSpec,
  layerRange: StageLayers,
  sizes: StageSizes,
  device: Pick<Device, "kind" | "compute" | "rowTile">,
): number => sizes.inFlight * hostStreamBytes(device, spec, layerRange, sizes);

/** `adapters`: bytes of the stage's pool (adapter-memory.ts). */
export function stageMemory(
  spec: ModelSpec,
  layerRange: StageLayers,
  sizes: StageSizes,
  device: Pick<Device, "kind" | "compute" | "rowTile" | "threads">,
  adapters: number,
): MemoryParts {
  const buffers = stageBufferBytes(device, spec, layerRange, sizes);
  const capacity = linkCapacity(spec, sizes, device.compute);
  const neighbours = Number(!layerRange.first) + Number(!layerRange.last);
  return {
    weights:
      weightBytes(spec, layerRange, device.compute, sizes) +
      (device.kind === "cpu" ? hostWeightBytes(spec, device.compute) : 0),
    adapters,
    activations: buffers.activations,
    workspace: buffers.workspace + stageScratchBytes(device, spec, layerRange, sizes),
    head: buffers.head,
    links: neighbours * capacity.slots * alignUp(capacity.slotBytes, LINK_ALIGN),
    ...(sizes.cache ? { cache: buffers.cache } : {}),
  };
}
