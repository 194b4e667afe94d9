// Memory of generation: the keys and values that are kept of each sequence, and the buffers of a pass that nobody goes back through.

import type { DType } from "../base/dtype.ts";
import type { WeightFormat } from "../base/precision.ts";
import { range } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import type { Device, Tensor } from "../device/device.ts";
import { sameOrderPlaces } from "../device/tile.ts";
import type { AdapterCapacity } from "../methods/layout.ts";
import { takeBatch } from "./batch.ts";
import { type Activations, type ForwardWork, type Sizes, takeForwardWork, takeLayers } from "./buffers.ts";
import { programOf } from "./program.ts";

/** Of each layer of a stage: c[S, 2 C D], a row for each token that is kept. */
export type Cache = readonly Tensor[];

/** The places of a pass's rows in the cache, i32[M], and what they see: each other, or what is kept (their own keys among it). */
export type Cached = { readonly cache: Cache; readonly places: Tensor; readonly from: "pass" | "cache" };

type Take = (dtype: DType, ...shape: number[]) => Tensor;

export type GenerationSizes = AdapterCapacity & {
  /** Rows of the largest pass, a multiple of the row tile. */
  readonly rows: number;
  /** Sequences that grow at once, and tokens that each may have. */
  readonly sequences: number;
  readonly capacity: number;
  readonly adapters: number;
  readonly format: WeightFormat;
};

/** Keys and values of `rows` tokens, in every layer. */
export const takeCache = (take: Take, compute: DType, { layers, kvHeads, headDim }: ModelSpec, rows: number): Cache =>
  Array.from({ length: layers }, () => take(compute, rows, 2 * kvHeads * headDim));

/** All layers share one layer's buffers, and the stream goes to and fro between two. */
export function takeForward(
  take: Take,
  compute: DType,
  spec: ModelSpec,
  sizes: Sizes,
): { readonly acts: Activations; readonly work: ForwardWork } {
  const program = programOf(spec, { from: 0, to: spec.layers });
  const work = takeForwardWork(take, compute, program, sizes);
  const streams = range(2).map(() => take(compute, sizes.rows, spec.hidden));
  const acts = {
    inputs: range(program.length + 1).map((i) => streams[i % 2]!),
    layers: takeLayers(take, compute, program, { ...sizes, recomputation: "full" }, work),
  };
  return { acts, work };
}

/** All that a generator keeps beside weights and adapters. */
export function takeGeneration(
  take: Take,
  { kind, compute, rowTile }: Pick<Device, "kind" | "compute" | "rowTile">,
  spec: ModelSpec,
  sizes: GenerationSizes,
) {
  const { rows, sequences, capacity, adapters, rank, groups, methods } = sizes;
  const targets = Math.ceil(sequences / sameOrderPlaces({ kind, rowTile }).length) * rowTile;
  const room = { rank, groups, methods };
  const ofPass = { ...room, targets, chunk: rowTile, layers: spec.layers, recomputation: "full" } as const;
  const states = () => take(compute, targets, spec.hidden);
  return {
    rope: { cos: take("f32", capacity, spec.headDim / 2), sin: take("f32", capacity, spec.headDim / 2) },
    cache: takeCache(take, compute, spec, sequences * capacity),
    places: take("i32", rows),
    batch: takeBatch(take, { rows, targets, adapters: Math.max(1, adapters), rowTile }),
    ...takeForward(take, compute, spec, { ...ofPass, rows }),
    head: { x: states(), h: states(), rstd: take("f32", targets), logits: take(compute, rowTile, tableRows(spec)) },
  };
}
