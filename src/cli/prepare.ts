// From a recipe's path to a plan: what `run` and `plan` have in common. All that a request can get wrong is found here, before
// any weight is read.

import { relative } from "node:path";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type Dataset, loadDataset, type ReadFiles } from "../data/dataset.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { openBaseModel } from "../files/basemodel.ts";
import { readModelSpec } from "../files/config.ts";
import { readPeftAdapter } from "../files/peft.ts";
import { resolveTargets } from "../plan/adapters.ts";
import { makePlan, type Plan } from "../plan/plan.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { AdapterRecipe, Overrides, Recipe } from "../recipe/recipe.ts";
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
  const device = describeDevice(recipe.run.device, recipe.model.precision);
  if (recipe.model.precision === "bf16" && device.compute !== "bf16")
    throw new RequestError(
      "plan.precision",
      `${recipe.path}: model.precision is bf16, but the ${device.kind} device computes in fp32`,
      'set precision to "auto" or "fp32"',
    );
  openBaseModel(recipe.model.path, spec)[Symbol.dispose](); // the files are whole and fit the configuration
  for (const adapter of recipe.adapters) checkInitialAdapter(adapter, spec);
  const tokenizer = loadTokenizer(recipe.model.path);
  const read: ReadFiles = new Map(); // a sweep's adapters share their rows
  const data = recipe.adapters.map((adapter) => loadDataset(adapter, tokenizer, spec.vocab, read));
  const plan = makePlan(
    recipe,
    spec,
    data.map(({ train, eval: held }) => ({ train: summary(train), eval: summary(held) })),
    device,
  );
  return { recipe, plan, data };
}

/** An adapter that continues another must be of its making: other ranks or scales would be another function from the start. */
function checkInitialAdapter(adapter: AdapterRecipe, spec: ModelSpec): void {
  if (adapter.initialAdapter === null) return;
  const saved = readPeftAdapter(adapter.initialAdapter, spec);
  const pairs: readonly (readonly [string, unknown, unknown])[] = [
    ["rank", adapter.rank, saved.rank],
    ["alpha", adapter.alpha, saved.alpha],
    ["rslora", adapter.rslora, saved.rslora],
    ["targets", resolveTargets(adapter, spec).join(", "), saved.targets.join(", ")],
  ];
  const faults = pairs.filter(([, wanted, found]) => wanted !== found);
  if (faults.length === 0) return;
  const told = faults.map(([key, wanted, found]) => `${key} ${found} there, ${wanted} in the recipe`).join("; ");
  throw new RequestError(
    "plan.from",
    `adapter '${adapter.name}' cannot continue ${adapter.initialAdapter}: ${told}`,
    "give the adapter the values of the one that it continues",
  );
}

/** A path as people want to read it: relative to here when that is shorter. */
export function shortPath(path: string): string {
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}
