// The cache of stages whose adapters answer prompts while they train.

import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { maxOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { CacheSizes } from "../engine/kv-cache.ts";
import { rolloutsOf } from "../objectives/registry.ts";
import type { AdapterPlan } from "./adapters.ts";
import { tileOf } from "./generation.ts";
import type { StageDevice } from "./plan.ts";

/** Of a device's free memory, what the cache takes at most, unless one sequence takes more. */
const SHARE = 0.2;

/**
 * Room for as many sequences as the adapters that answer extend at once, each as long as the longest may become; undefined
 * where none answers. Throws a RequestError, `device.rollouts`, on a device where that has not been shown right.
 */
export function rolloutCache(
  adapters: readonly AdapterPlan[],
  spec: ModelSpec,
  devices: readonly StageDevice[],
  slots: number | null,
): CacheSizes | undefined {
  const sampling = adapters.filter(({ recipe }) => rolloutsOf(recipe.objective));
  const device = devices[0]!;
  if (sampling.length === 0) return undefined;
  if (device.kind !== "cpu")
    throw new RequestError(
      "device.rollouts",
      `adapter '${sampling[0]!.name}': ${sampling[0]!.recipe.objective.name} is trained on CPUs alone yet; the device is ${device.name}`,
      'set device to "cpu"',
    );
  const capacity = maxOf(sampling.map(({ work }) => maxOf(work.lengths))) + 1; // the last token is sampled, and never read
  const each = tileOf(device).sameOrder.length;
  const wanted = sampling.map(({ work }) => Math.min(each, work.batchSize * work.accumulation)).sort((a, b) => b - a);
  const bytes = 2 * capacity * spec.layers * spec.kvHeads * spec.headDim * bytesOf(device.compute);
  const fitting = Math.floor((SHARE * device.freeBytes) / bytes);
  return { sequences: Math.max(1, Math.min(sum(wanted.slice(0, slots ?? wanted.length)), fitting)), capacity };
}
