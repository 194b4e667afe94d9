// From a recipe's path to a plan: what `run` and `plan` have in common. All that a request can get wrong is found here, before
// any weight is read.

import { relative } from "node:path";
import { RequestError } from "../base/errors.ts";
import { type Dataset, loadDataset } from "../data/dataset.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { readModelSpec } from "../files/config.ts";
import { resolveTargets } from "../plan/adapters.ts";
import { makePlan, type Plan } from "../plan/plan.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { Overrides, Recipe } from "../recipe/recipe.ts";
import { countTargets } from "../run/feed.ts";
import { inputLength, type Tokens } from "../schedule/pack.ts";
import { describeDevice } from "../stage/probe.ts";

export type Prepared = { readonly recipe: Recipe; readonly plan: Plan; readonly data: readonly Dataset[] };

const summary = (samples: readonly Tokens[]) =>
  samples.map((sample) => ({ length: inputLength(sample), targets: countTargets(sample) }));

/** Reads recipe, model configuration, tokenizer and data, and plans the run. Throws RequestErrors. */
export async function prepare(recipePath: string, overrides: Overrides): Promise<Prepared> {
  const recipe = await loadRecipe(recipePath, overrides);
  const spec = readModelSpec(recipe.model.path);
  for (const adapter of recipe.adapters) resolveTargets(adapter, spec); // before the data, which may be long
  const device = describeDevice(recipe.run.device);
  if (recipe.model.precision === "bf16" && device.compute !== "bf16")
    throw new RequestError(
      "plan.precision",
      `${recipe.path}: model.precision is bf16, but the ${device.kind} device computes in fp32`,
      'set precision to "auto" or "fp32"',
    );
  const tokenizer = loadTokenizer(recipe.model.path);
  const data = recipe.adapters.map((adapter) => loadDataset(adapter, tokenizer, spec.vocab));
  const plan = makePlan(
    recipe,
    spec,
    data.map(({ train, eval: held }) => ({ train: summary(train), eval: summary(held) })),
    device,
  );
  return { recipe, plan, data };
}

/** A path as people want to read it: relative to here when that is shorter. */
export function shortPath(path: string): string {
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}
