// Files in a run's folder that describe the run: its recipe, the adapters that were added to it, and those that are paused.

import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../../base/atomic.ts";
import { RequestError } from "../../base/errors.ts";
import { formatRecipe, loadRecipe } from "../../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";

export const RUN_RECIPE = "recipe.toml";
const ADDED = "added.toml";
const PAUSED = "paused.json";

/** Keeps a copy of the recipe in its run's folder, unless it was read from there. */
export function writeRecipe(recipe: Recipe): void {
  const copy = join(recipe.run.output, RUN_RECIPE);
  if (!isSameFile(copy, recipe.path)) writeFileAtomic(copy, formatRecipe(recipe));
}

/** Also where one is a link to the other. */
function isSameFile(a: string, b: string): boolean {
  const [one, other] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false, bigint: true }));
  return one !== undefined && other !== undefined && one.dev === other.dev && one.ino === other.ino;
}

/** Adapters that were added to the run of this folder while it ran. */
export function readAdded(output: string): readonly AdapterRecipe[] {
  const path = join(output, ADDED);
  return existsSync(path) ? loadRecipe(path).adapters : [];
}

/** `recipe` is the run's, for what added adapters share. */
export const writeAdded = (recipe: Recipe, adapters: readonly AdapterRecipe[]): void =>
  writeFileAtomic(join(recipe.run.output, ADDED), formatRecipe({ ...recipe, adapters }));

/** The recipe with the adapters that were added to its run. */
export function withAdded(recipe: Recipe): Recipe {
  const names = new Set(recipe.adapters.map(({ name }) => name));
  const added = readAdded(recipe.run.output).filter(({ name }) => !names.has(name));
  return added.length === 0 ? recipe : { ...recipe, adapters: [...recipe.adapters, ...added] };
}

const pausedSchema = v.pipe(v.string(), v.parseJson(), v.array(v.string()));

/** Names of paused adapters. Throws a RequestError, `run.paused`, where the file is damaged. */
export function readPaused(output: string): readonly string[] {
  const path = join(output, PAUSED);
  if (!existsSync(path)) return [];
  const parsed = v.safeParse(pausedSchema, readFileSync(path, "utf8"));
  if (parsed.success) return parsed.output;
  throw new RequestError("run.paused", `${path} is no list of names`, "remove it to resume all adapters");
}

export const writePaused = (output: string, names: readonly string[]): void =>
  writeFileAtomic(join(output, PAUSED), `${JSON.stringify(names)}\n`);
