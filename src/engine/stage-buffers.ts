// All that a stage holds besides weights and adapters, taken once when it opens. The plan counts what is taken here.

import type { DType } from "../base/dtype.ts";
import { expertFormatOf } from "../base/precision.ts";
import { keepsInputsAlone } from "../base/recomputation.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Device, Tensor } from "../device/device.ts";
import { scratchBytes } from "../device/scratch.ts";
import { expertTile } from "../device/tile.ts";
import { INPUT } from "../families/parts.ts";
import { makesInputs } from "../ops/lora.ts";
import { type CacheSizes, takeCache, takePages } from "./generation/kv-cache.ts";
import { takeChoices } from "./generation/next-tokens.ts";
import { takeRowTables } from "./generation/row-pass.ts";
import { type BatchMemory, takeBatch } from "./layers/batch.ts";
import {
  type Activations,
  countBytes,
  type StageSizes,
  takeActivations,
  takeBeside,
  takeForwardWork,
  takeHead,
  takeWorkspace,
  type Workspace,
} from "./layers/buffers.ts";
import { offloadedBytes } from "./layers/offloaded-streams.ts";
import { halvesOf, type Program, programOf } from "./layers/program.ts";
import { attending, takeSharedLayers } from "./layers/shared-layers.ts";
import { tableRows } from "./operations/rope.ts";
import type { StageLayers } from "./weights/weights.ts";

type Take = (dtype: DType, ...shape: number[]) => Tensor;
/** What the plan counts apart. */
export type BufferPart = "activations" | "workspace" | "head" | "cache";

type BufferDevice = Pick<Device, "kind" | "compute" | "rowTile">;

/** Memory that one packed batch holds from its forward to its backward pass. */
export type PassMemory = { readonly batch: BatchMemory; readonly acts: Activations };

export type StageBuffers = ReturnType<typeof takeStageBuffers>;

const sizesOn = <S extends StageSizes>({ kind }: Pick<BufferDevice, "kind">, sizes: S) => ({
  ...sizes,
  expertTile: expertTile({ kind }),
  makesInputs: makesInputs({ kind }),
});

/** Takes each tensor from `takeOf(part)`. */
export function takeStageBuffers(
  takeOf: (part: BufferPart) => Take,
  { kind, compute, rowTile }: BufferDevice,
  spec: ModelSpec,
  layerRange: StageLayers,
  of: StageSizes,
) {
  const sizes = sizesOn({ kind }, of);
  const { slots: adapters, inFlight, positions, rows, cache } = sizes;
  const take = takeOf("workspace");
  const ropes = spec.ropes.map((rope) => {
    const rows = tableRows(rope, positions);
    const [cos, sin] = range(2).map(() => take("f32", rows, rope.rotated / 2));
    return { rotated: rope.rotated, cos: cos!, sin: sin!, queryScale: rope.queryScale && take("f32", rows) };
  });
  const program = stageProgram(spec, layerRange, of);
  const forward = takeForwardWork(take, compute, program, sizes);
  const trains = inFlight > 0;
  const shared =
    !trains || keepsInputsAlone(sizes.recomputation)
      ? takeSharedLayers(take, compute, program, trains ? sizes : { ...sizes, recomputation: "full" }, forward, {
          gradients: trains,
          head: trains && layerRange.last ? spec : null,
        })
      : null;
  const backward: Workspace | null = trains
    ? { ...forward, ...takeWorkspace(take, compute, program, sizes, shared?.gradients ?? null) }
    : null;
  const passes = Array.from({ length: Math.max(1, inFlight) }, (): PassMemory => {
    const activations = backward ? takeActivations : takeForwardActivations;
    return {
      batch: takeBatch(take, spec, { ...sizes, adapters, rowTile }),
      acts: activations(takeOf("activations"), compute, program, sizes, forward, shared),
    };
  });
  return {
    ropes,
    embeddingNorm:
      layerRange.first && spec.embeddingNorm !== null ? { eps: spec.embeddingNorm, rstd: take("f32", rows) } : null,
    work: backward ?? forward,
    backward,
    passes,
    head: layerRange.last ? (shared?.head ?? takeHead(takeOf("head"), compute, spec, sizes)) : null,
    keepsLast: shared?.keepsLast ?? false,
    cache: cache ? takeCache(takeOf("cache"), compute, programOf(spec, layerRange), cache) : null,
    places: cache ? takeOf("cache")("i32", rows) : null,
    pages: cache ? takePages(takeOf("cache"), cache) : null,
    tiles: cache ? takeOf("cache")("i32", rows, 2) : null,
    rowTables: cache ? takeRowTables(takeOf("cache"), { rows, sequences: cache.sequences, slots: adapters }) : null,
    choices: cache && layerRange.last ? takeChoices(takeOf("cache"), sizes.targets) : null,
  };
}

/** What a stage computes: halves of layers where the inputs of these wait in host memory, else layers. */
export const stageProgram = (
  spec: ModelSpec,
  layerRange: StageLayers,
  { inFlight, recomputation }: Pick<StageSizes, "inFlight" | "recomputation">,
): Program => (inFlight > 0 && recomputation === "offload" ? halvesOf : programOf)(spec, layerRange);

/** What of one packed batch waits in host memory. */
export type HostNeed = {
  /** Bytes of streams between layers, and of the input of one layer's attention. */
  readonly streams: number;
  readonly input: number;
  /** Layers that have such an input. */
  readonly attending: number;
};

/** Null where nothing waits there. */
export function hostNeed(device: BufferDevice, spec: ModelSpec, layerRange: StageLayers, sizes: StageSizes): HostNeed | null {
  if (sizes.inFlight === 0 || sizes.recomputation !== "offload") return null;
  const program = stageProgram(spec, layerRange, sizes);
  const counted: Take = (dtype, ...shape) => ({ ptr: 0, dtype, shape });
  const of = { ...sizesOn(device, sizes), hostInputs: attending(program).length };
  const forward = takeForwardWork(counted, device.compute, program, of);
  const layers = takeSharedLayers(counted, device.compute, program, of, forward, { gradients: false, head: null });
  return {
    streams: offloadedBytes(program.length, sizes.rows, spec.hidden, device.compute),
    input: layers.regionBytes,
    attending: of.hostInputs,
  };
}

/** Bytes of host memory for each packed batch that a stage has in flight. */
export function hostStreamBytes(device: BufferDevice, spec: ModelSpec, layerRange: StageLayers, sizes: StageSizes): number {
  const need = hostNeed(device, spec, layerRange, sizes);
  return need ? need.streams + (sizes.hostInputs ?? 0) * need.input : 0;
}

/** Without a backward pass all layers share one layer's buffers, and the stream alternates between two. */
const takeForwardActivations: typeof takeActivations = (take, compute, program, sizes, _, layers) => {
  const streams = range(2).map(() => take(compute, sizes.rows, program[0]!.values.get(INPUT)!.width));
  return {
    hostStreams: null,
    inputs: range(program.length + 1).map((i) => streams[i % 2]!),
    region: null,
    layers: layers!.layersAt(null),
    ...takeBeside(take, compute, program, sizes),
  };
};

/** Bytes of a stage's buffers by part, as an arena takes them. */
export function stageBufferBytes(
  device: BufferDevice,
  spec: ModelSpec,
  layerRange: StageLayers,
  sizes: StageSizes,
): Readonly<Record<BufferPart, number>> {
  const bytes = { activations: 0, workspace: 0, head: 0, cache: 0 };
  const count =
    (part: BufferPart) =>
    (dtype: DType, ...shape: number[]) => {
      bytes[part] += countBytes((take) => take(dtype, ...shape));
      return { ptr: 0, dtype, shape };
    };
  takeStageBuffers(count, device, spec, layerRange, sizes);
  return bytes;
}

/** Bytes of the block that a stage's kernels leave each other things in. */
export function stageScratchBytes(
  device: Pick<Device, "kind" | "compute" | "threads">,
  spec: ModelSpec,
  layers: StageLayers,
  { cache, ...sizes }: StageSizes,
): number {
  return scratchBytes(device, { ...sizes, spec, layers, expertFormat: expertFormatOf(sizes), generates: cache !== undefined });
}

export const totalBufferBytes = (...of: Parameters<typeof stageBufferBytes>): number =>
  sum(Object.values(stageBufferBytes(...of)));

/** Bytes of the cache of a stage's layers. */
export const cacheBytes = (compute: DType, spec: ModelSpec, layerRange: StageLayers, sizes: CacheSizes): number =>
  countBytes((take) => takeCache(take, compute, programOf(spec, layerRange), sizes));
