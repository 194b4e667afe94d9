// Which adapters of a run came out best: those that are held against the same rows can be compared.

import { isPreference } from "../../objectives/registry.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import type { AdapterResult } from "../events/events.ts";
import { heldOutKey } from "../preparation/comparable.ts";

/**
 * Adapters with the same rows and objective next to each other, the best first; `best`: the first of each such group;
 * `isJudged`: some have preferences, whose rows are judged and not reproduced.
 */
export function ranked(results: readonly AdapterResult[], recipes: readonly AdapterRecipe[]) {
  const groups = [...Map.groupBy(results, (_, i) => heldOutKey(recipes[i]!)).values()];
  const isComplete = ({ status }: AdapterResult) => Number(status === "done" || status === "early");
  const lossOf = ({ after }: AdapterResult) => after?.loss ?? Number.POSITIVE_INFINITY;
  const better = (a: AdapterResult, b: AdapterResult) =>
    isComplete(b) - isComplete(a) || (isComplete(a) ? 0 : b.steps - a.steps) || lossOf(a) - lossOf(b);
  const sorted = groups.map((group) => (group.some(({ after }) => after) ? group.toSorted(better) : group));
  const winners = sorted
    .filter((group) => group.length > 1 && group[0]!.after && isComplete(group[0]!))
    .map(([first]) => first!);
  return {
    adapters: sorted.flat(),
    best: new Set(winners),
    isJudged: recipes.some(({ objective }) => isPreference(objective)),
  };
}
