// The cache of stages whose adapters answer prompts while they train.

import type { HeldWeights } from "../base/precision.ts";
import { maxOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { sameOrderPlaces } from "../device/tile.ts";
import type { CacheSizes } from "../engine/generation/kv-cache.ts";
import { cacheBytes } from "../engine/stage-buffers.ts";
import { weightBytes, wholeModel } from "../engine/weights/weights.ts";
import { rolloutsOf } from "../objectives/registry.ts";
import type { AdapterPlan } from "./adapters.ts";
import type { StageDevice } from "./plan.ts";

/** Of the memory that the base model leaves, what the cache takes at most, unless one sequence takes more. */
const SHARE = 0.2;

/**
 * Room for as many sequences as the adapters that answer extend at once, each as long as the longest may become; undefined
 * where none answers. `devices` are those of the stages.
 */
export function rolloutCache(
  adapters: readonly AdapterPlan[],
  spec: ModelSpec,
  devices: readonly StageDevice[],
  slots: number | null,
  held: HeldWeights,
): CacheSizes | undefined {
  const sampling = adapters.filter(({ recipe }) => rolloutsOf(recipe.objective));
  const device = devices[0]!;
  if (sampling.length === 0) return undefined;
  const capacity = maxOf(sampling.map(({ work }) => maxOf(work.lengths))) + 1; // the last token is sampled, and never read
  const each = sameOrderPlaces(device).length;
  const wanted = sampling.map(({ work }) => Math.min(each, work.batchSize * work.accumulation)).sort((a, b) => b - a);
  const layers = wholeModel(spec);
  const apart = new Map(devices.map((of) => [`${of.host} ${of.ordinal}`, of.freeBytes])); // some have several stages
  const free = sum([...apart.values()]) - weightBytes(spec, layers, device.compute, held);
  const bytes = cacheBytes(device.compute, spec, layers, { sequences: 1, capacity });
  const fitting = Math.floor((SHARE * free) / bytes);
  return { sequences: Math.max(1, Math.min(sum(wanted.slice(0, slots ?? wanted.length)), fitting)), capacity };
}
