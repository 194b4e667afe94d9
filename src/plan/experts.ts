// What a plan says of adapters on a mixture of experts: how many linears of each kind they have, and what they may be thought
// to have and have not.

import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isAll } from "../base/targeting.ts";
import { isOfExperts, LINEARS, type Linear, linearsIn, modulePath } from "../families/linears.ts";
import type { Placed } from "../methods/adapter.ts";
import { rankAt } from "../methods/placement.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";

/** Linears of attention, of dense MLPs, and of experts; one that experts have each counts once. */
export type SiteCounts = { readonly attention: number; readonly dense: number; readonly experts: number };

const isOfAttention = (linear: Linear): boolean => /^(self_attn\.|mixer\.[qkvo]_proj$)/.test(modulePath(linear));

export function countSites(adapter: Placed, layers: number): SiteCounts {
  const of = (is: (linear: Linear) => boolean) =>
    sum(range(layers).map((layer) => LINEARS.filter((linear) => is(linear) && rankAt(adapter, layer, linear) > 0).length));
  return {
    attention: of(isOfAttention),
    dense: of((linear) => !isOfAttention(linear) && !isOfExperts(linear)),
    experts: of(isOfExperts),
  };
}

/** Of adapters of a recipe on a mixture of experts; none on another model. */
export function expertNotices(adapters: readonly AdapterRecipe[], spec: ModelSpec): string[] {
  if (spec.experts === null) return [];
  const own = linearsIn(spec).filter(isOfExperts);
  const names = [...new Set(own.map((linear) => modulePath(linear).replace(/^.*\./, "")))].join(", ");
  const without = adapters.filter(({ targets }) => isAll(targets)).map(({ name }) => `'${name}'`);
  const dropping = adapters
    .filter(({ targets, dropout }) => dropout > 0 && !isAll(targets) && own.some((linear) => namesLinear(targets, linear)))
    .map(({ name }) => `'${name}'`);
  return [
    ...(without.length === 0
      ? []
      : [`targets "all-linear" of ${without.join(", ")} has no experts: name ${names} to train them, too`]),
    ...(dropping.length === 0 ? [] : [`dropout of ${dropping.join(", ")} does not act in experts, where PEFT refuses it`]),
  ];
}

const namesLinear = (targets: string | readonly string[], linear: Linear): boolean =>
  typeof targets === "string"
    ? targets.includes("experts")
    : targets.some((target) => `.${modulePath(linear)}`.endsWith(`.${target}`) || target.endsWith(modulePath(linear)));
