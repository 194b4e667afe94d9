// Sizes of a stage that generates: how many sequences at once, and how long each may become.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import type { HeldWeights, WeightFormat } from "../base/precision.ts";
import { alignUp, maxOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted, formatBytes } from "../base/units.ts";
import { CUDA_ROW_TILE, sameOrderPlaces } from "../device/tile.ts";
import { type CacheSizes, keepsStates, pagesOfSequence } from "../engine/generation/kv-cache.ts";
import type { StageSizes } from "../engine/layers/buffers.ts";
import { type StageLayers, wholeModel } from "../engine/weights/weights.ts";
import { linearElements } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { PIECE, promptRows, type Tile, tiledRows, tilesFor } from "../schedule/decode.ts";
import { blockBytes, lowSizes, lowWidths, poolBytes, productSizes } from "./adapter-memory.ts";
import { checkHostMemory } from "./host-memory.ts";
import { requireKernels, stageMemory } from "./memory.ts";
import { type StageDevice, totalBytes } from "./plan.ts";

/** Tokens of a prompt, how many may follow, and under which adapter: its slot, or -1 for the base model alone. */
export type SequenceSize = { readonly adapter: number; readonly prompt: number; readonly limit: number };

export type GenerationSizes = StageSizes & { readonly cache: CacheSizes };

/** A single stage with the whole model that only generates. */
export type GenerationPlan = { readonly spec: ModelSpec; readonly stages: readonly [GenerationStage] };
type GenerationStage = { readonly layerRange: StageLayers; readonly sizes: GenerationSizes; readonly device: StageDevice };

/** Rows of a pass that reads prompts, at most, where no prompt is longer. */
const PASS_ROWS = { cpu: 288, cuda: 4096 } as const;
/** The share of a device's free memory that is taken. */
const SHARE = { cpu: 0.7, cuda: 0.95 } as const;

/** A device's tile of rows, and the places in it whose rows are summed in the same order. */
export const tileOf = (device: Parameters<typeof sameOrderPlaces>[0]): Tile => ({
  rows: device.rowTile,
  sameOrder: sameOrderPlaces(device),
  isApart: device.kind !== "cpu",
});

/** Weights times tokens of a prompt from which on their products take longer than the launches of a pass. */
const WORTH_LAUNCHES = 2 ** 37;

/**
 * Tokens of a prompt that is read by tiles where prompts are read in rows, at least: they fill half a tile, and outweigh the
 * launches of a pass that is not recorded. By the model alone, as what a prompt comes to depends on it.
 */
export const tiledPromptOf = (spec: ModelSpec): number =>
  Math.max(CUDA_ROW_TILE / 2, Math.ceil(WORTH_LAUNCHES / linearElements(spec)));

/** As many sequences at once as there are and as fit. Throws a RequestError, `generate.memory`, where not one fits. */
export function planGeneration(
  spec: ModelSpec,
  device: DeviceReport,
  adapters: readonly (PoolAdapter & { readonly name: string })[],
  wanted: readonly SequenceSize[],
  format: WeightFormat,
  { denseGroups = [], expertFormat, tableFormat }: Omit<HeldWeights, "format"> = {},
): GenerationPlan {
  requireKernels(spec, device);
  const { rowTile } = device;
  const tile = tileOf(device);
  const own = [...Map.groupBy(wanted, ({ adapter }) => adapter).values()];
  const tiles = tile.isApart
    ? tilesFor(
        own.map(({ length }) => length),
        tile,
      )
    : own.length;
  const layers = wholeModel(spec);
  const inPieces = !keepsStates(spec);
  const prompts = wanted.map(({ prompt }) => promptRows(inPieces ? Math.min(prompt, PIECE) : prompt, tile));
  // Where sequences are extended in the same passes, each adapter may begin a tile with its piece.
  const beside = inPieces && device.kind === "cuda" ? alignUp(PIECE, rowTile) + own.length * rowTile : 0;
  const tiled = wanted.filter(({ prompt }) => prompt >= tiledPromptOf(spec)).map(({ prompt }) => prompt);
  const read = beside === 0 ? sum(prompts) : tiled.length > 0 ? sum(tiled) + own.length * rowTile : 0;
  const atOnce = Math.min(read, PASS_ROWS[device.kind]);
  const rows = maxOf([...prompts, tiles * rowTile + beside, atOnce]);
  const capacity = maxOf(wanted.map(({ prompt, limit }) => prompt + limit));
  const slots = Math.max(1, adapters.length);
  const passRows = alignUp(rows, rowTile);
  const sizesFor = ({ sequences, pages }: Cache): GenerationSizes => ({
    slots,
    rows: passRows,
    targets: tiledRows(sequences, tile),
    chunk: rowTile,
    layers: spec.layers,
    low: lowSizes(lowWidths(adapters, layers), passRows, rowTile),
    gradients: [],
    hostBytes: 0,
    blockBytes: sum(adapters.map((adapter) => blockBytes(spec, layers, [adapter], device, false))),
    products: productSizes(adapters),
    recomputation: "full",
    inFlight: 0,
    positions: capacity,
    format,
    denseGroups,
    ...(expertFormat ? { expertFormat } : {}),
    ...(tableFormat ? { tableFormat } : {}),
    cache: { sequences, capacity, pages },
  });
  checkHostMemory(spec, [{ device: { ...device, host: "" } }]);
  const free = device.freeBytes * SHARE[device.kind];
  const bytes = (cache: Cache) => generationBytes(spec, device, sizesFor(cache));
  const most = Math.min(wanted.length, tiles * tile.sameOrder.length);
  const cache = fittingCache(wanted, most, (cache) => bytes(cache) <= free);
  if (!cache)
    throw new RequestError(
      "generate.memory",
      `one sequence of ${counted(capacity, "token")} needs ${formatBytes(bytes({ sequences: 1, pages: pagesOfSequence({ capacity }) }))} on ${device.name}, which has ${formatBytes(free)} for it`,
      "lower --max-new-tokens, or hold the base in fewer bits: --precision nf4",
    );
  const stage = { layerRange: layers, sizes: sizesFor(cache), device: { ...device, host: "" } };
  return { spec, stages: [stage] };
}

type Cache = { readonly sequences: number; readonly pages: number };

/**
 * As many sequences at once as have pages for half of what may follow their prompts, and pages for as much of the rest as fits;
 * null where not one has room to its end.
 */
function fittingCache(wanted: readonly SequenceSize[], most: number, fits: (cache: Cache) => boolean): Cache | null {
  const pages = (share: number) =>
    wanted.map(({ prompt, limit }) => pagesOfSequence({ capacity: prompt + Math.ceil(share * limit) })).sort((a, b) => b - a);
  const [whole, half] = [pages(1), pages(0.5)];
  const least = (sequences: number) => Math.max(whole[0]!, sum(half.slice(0, sequences)));
  let sequences = most;
  while (sequences > 1 && !fits({ sequences, pages: least(sequences) })) sequences = Math.floor(sequences / 2);
  if (!fits({ sequences, pages: least(sequences) })) return null;
  // As many pages as fit, up to those of all: found by halves.
  let [low, high] = [least(sequences), Math.max(least(sequences), sum(whole.slice(0, sequences)))];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits({ sequences, pages: middle })) low = middle;
    else high = middle - 1;
  }
  return { sequences, pages: low };
}

/** All that a stage of these sizes, with the whole model and its adapters, takes of a device. */
export function generationBytes(
  spec: ModelSpec,
  device: Pick<DeviceReport, "kind" | "compute" | "rowTile" | "threads">,
  sizes: StageSizes,
): number {
  const layers = wholeModel(spec);
  const pool = poolBytes(spec, layers, sizes, sizes.blockBytes, device.kind);
  return totalBytes(stageMemory(spec, layers, sizes, device, pool));
}
