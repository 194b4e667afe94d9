// What generation takes of a device: how many sequences grow at once, and how long each may become.

import type { DeviceReport } from "../base/device-report.ts";
import { RequestError } from "../base/errors.ts";
import type { WeightFormat } from "../base/precision.ts";
import { alignUp, maxOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { formatBytes } from "../base/units.ts";
import { scratchBytes } from "../device/scratch.ts";
import { sameOrderPlaces } from "../device/tile.ts";
import { countBytes } from "../engine/buffers.ts";
import { type GenerationSizes, takeGeneration } from "../engine/generation.ts";
import { poolBytes } from "../engine/pool-memory.ts";
import { weightBytes, wholeModel } from "../engine/weights.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { layoutAdapters, roomOf } from "../methods/layout.ts";
import { promptRows } from "../schedule/decode.ts";
import { padRank } from "./plan.ts";

/** Tokens of a prompt, how many may follow, and under which adapter: its slot, or -1 for none. */
export type Wish = { readonly adapter: number; readonly prompt: number; readonly limit: number };

/** Rows of a pass that reads prompts, at most, where no prompt is longer. */
const PASS_ROWS = { cpu: 288, cuda: 4096 } as const;
/** The share of a device's free memory that is taken. */
const SHARE = { cpu: 0.7, cuda: 0.95 } as const;

/** As many sequences at once as there are and as fit. Throws a RequestError, `generate.memory`, where not one fits. */
export function planGeneration(
  spec: ModelSpec,
  device: DeviceReport,
  adapters: readonly (PoolAdapter & { readonly name: string })[],
  wishes: readonly Wish[],
  format: WeightFormat,
): GenerationSizes {
  const { rowTile } = device;
  const tile = { rows: rowTile, sameOrder: sameOrderPlaces(device) };
  const tiles = new Set(wishes.map(({ adapter }) => adapter)).size;
  const prompts = wishes.map(({ prompt }) => promptRows(prompt, tile));
  const rows = maxOf([...prompts, tiles * rowTile, Math.min(sum(prompts), PASS_ROWS[device.kind])]);
  const shared = {
    rows: alignUp(rows, rowTile),
    capacity: maxOf(wishes.map(({ prompt, limit }) => prompt + limit)),
    adapters: adapters.length,
    rank: adapters.length === 0 ? 0 : padRank(adapters, device),
    ...roomOf(adapters),
    format,
  };
  const most = Math.min(wishes.length, tiles * tile.sameOrder.length);
  const free = device.freeBytes * SHARE[device.kind];
  const bytes = (sequences: number) => generationBytes(spec, device, { ...shared, sequences });
  let sequences = most;
  while (sequences > 1 && bytes(sequences) > free) sequences = Math.floor(sequences / 2);
  if (bytes(sequences) > free)
    throw new RequestError(
      "generate.memory",
      `one sequence of ${shared.capacity} tokens needs ${formatBytes(bytes(1))} on ${device.name}, which has ${formatBytes(free)} for it`,
      "lower --max-new-tokens, or hold the base in fewer bits: --precision nf4",
    );
  return { ...shared, sequences };
}

/** All that a generator of these sizes takes of a device. */
export function generationBytes(
  spec: ModelSpec,
  device: Pick<DeviceReport, "kind" | "compute" | "rowTile" | "threads">,
  sizes: GenerationSizes,
): number {
  const { rows, adapters, rank, groups, format } = sizes;
  const layerRange = wholeModel(spec);
  const layout = layoutAdapters(spec, layerRange, sizes);
  return (
    weightBytes(spec, layerRange, device.compute, format) +
    poolBytes({ spec, layers: layerRange, slots: Math.max(1, adapters), capacity: sizes, compute: device.compute }) +
    scratchBytes(device, { spec, groups, rows, rank, adapters, format, layout }) +
    countBytes((take) => takeGeneration(take, device, spec, sizes))
  );
}
