// Opens stages for the primitives: a recipe's base model and adapters, whose data is not read.

import { RequestError } from "../../base/errors.ts";
import { openStages } from "../../cluster/open-stages.ts";
import type { CacheSizes } from "../../engine/generation/kv-cache.ts";
import { readModelSpec } from "../../files/config.ts";
import { modelFingerprint } from "../../files/fingerprint.ts";
import { readModelFacts } from "../../files/modelfacts.ts";
import { makePlan, type Plan } from "../../plan/plan.ts";
import type { Recipe } from "../../recipe/recipe.ts";
import { localDevices } from "../preparation/prepare.ts";
import { largestData } from "./capacity.ts";
import { Primitives } from "./primitives.ts";

export type OpenOptions = {
  /** Left out, nothing can be sampled. */
  readonly cache?: CacheSizes;
  /** The recipe's adapters only say what there is room for: none of them is there, others are added. */
  readonly isEmpty?: boolean;
  readonly weightOf?: (owner: string) => number;
  /** This process has other work that the stages must not hold up: kernels of a CPU block the process that they run in. */
  readonly isBusy?: boolean;
  /** Ends the opening, with its reason. */
  readonly signal?: AbortSignal;
};

/**
 * The adapters of a recipe as they are before their first step, all at once. Rows may have `max_length` tokens, micro-batches
 * `batch_size` rows and `tokens_per_microbatch` tokens. Throws RequestErrors, as a run of the recipe would.
 */
export async function openPrimitives(recipe: Recipe, options: OpenOptions = {}): Promise<Primitives> {
  const { cache, signal = new AbortController().signal, isEmpty = false, isBusy = false, weightOf } = options;
  const plan = planPrimitives(recipe, cache);
  if (isBusy) modelFingerprint(recipe.model.path); // which states have: the model is read now, and not by the first of them
  const isApart = isBusy && plan.device.kind === "cpu";
  const stages = await openStages(plan, { folder: recipe.model.path }, "auto", signal, null, isApart);
  return Primitives.begin(stages.bus, plan, stages, {
    lost: stages.lost,
    ...(weightOf ? { weightOf } : {}),
    ...(isEmpty ? { adapters: [] } : {}),
  });
}

/** Stages with room for all adapters of a recipe at once, or for as many of any of them as it has slots. */
export function planPrimitives(recipe: Recipe, cache?: CacheSizes): Plan {
  const { path } = recipe.model;
  const { spec, exact } = readModelFacts(path, readModelSpec(path));
  const data = recipe.adapters.map((adapter) => largestData(adapter, spec.maxPositions));
  const plan = makePlan(recipe, spec, data, localDevices(recipe, spec), {
    exact,
    allAtOnce: true,
    ...(cache ? { cache } : {}),
  });
  const wanted = recipe.run.slots ?? plan.adapters.length;
  if (plan.slots === wanted) return plan;
  throw new RequestError(
    "plan.memory",
    `${wanted} adapters do not fit on ${plan.device.name} at once, only ${plan.slots}`,
    "lower max_length, batch_size or the number of adapters",
  );
}
