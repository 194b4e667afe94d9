// Which adapters can be held against each other by their held-out losses: those whose held-out rows read the same.

import type { AdapterRecipe } from "../../recipe/recipe.ts";

/** Keys of a recipe that decide what an adapter's held-out rows and their loss are, with their values. */
const readingOf = (recipe: AdapterRecipe): Readonly<Record<string, unknown>> => ({
  data:
    recipe.eval.length > 0
      ? [recipe.eval, recipe.mostRows?.eval ?? recipe.eval.map(() => null)]
      : [recipe.train, recipe.mostRows?.train, recipe.evalSplit],
  format: recipe.format,
  columns: recipe.columns,
  template: recipe.template,
  chat_template: recipe.chatTemplate,
  chat_template_kwargs: recipe.chatVariables,
  thoughts: recipe.thoughts,
  system: recipe.system,
  train_on: recipe.trainOn,
  objective: recipe.objective,
  max_length: recipe.maxLength,
  overlong: recipe.overlong,
});

/** The same for adapters whose held-out losses can be compared. */
export const heldOutKey = (recipe: AdapterRecipe): string => JSON.stringify(readingOf(recipe));

/** The keys in which the held-out rows of some of these adapters differ, or what their loss is of them. */
export function differingKeys(recipes: readonly AdapterRecipe[]): string[] {
  const all = recipes.map(readingOf);
  return Object.keys(all[0] ?? {}).filter((key) => new Set(all.map((of) => JSON.stringify(of[key]))).size > 1);
}
