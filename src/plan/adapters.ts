// What an adapter of a recipe becomes on a given base model: its linears and the factor on B A x.

import { RequestError } from "../base/errors.ts";
import { LINEARS, type Linear, type ModelSpec } from "../base/spec.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";

/** The factor on B A x. Nothing else in the program divides alpha by rank (Hu et al. 2021; rsLoRA: Kalajdzievski 2023). */
export const scaleOf = ({ alpha, rank, rslora }: Pick<AdapterRecipe, "alpha" | "rank" | "rslora">): number =>
  rslora ? alpha / Math.sqrt(rank) : alpha / rank;

/** The linears that an adapter targets, in the model's order. A name that no linear has is a RequestError. */
export function resolveTargets({ name, targets }: Pick<AdapterRecipe, "name" | "targets">, spec: ModelSpec): readonly Linear[] {
  if (targets === "all-linear") return LINEARS;
  const unknown = targets.filter((target) => !LINEARS.includes(target as Linear));
  if (unknown.length > 0)
    throw new RequestError(
      "plan.targets",
      `adapter '${name}': ${unknown.map((target) => `'${target}'`).join(", ")} is no linear layer of this ${spec.family} model`,
      `targets may be "all-linear" or any of ${LINEARS.join(", ")}`,
    );
  return LINEARS.filter((linear) => targets.includes(linear));
}
