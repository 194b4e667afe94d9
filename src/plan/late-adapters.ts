// Adapters that join a run under way: they take what room the stages have, as these were opened.

import { maxOf } from "../base/shape.ts";
import type { Group } from "../families/linears.ts";
import { roomOf } from "../methods/layout.ts";
import { DEFINITIONS, PEFT_METHODS } from "../methods/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { type AdapterPlan, type DataSummary, largestRows, longestRow, onStages, planAdapters } from "./adapters.ts";
import type { Plan } from "./plan.ts";

/** Adapters as they would stand after those of the plan. Throws RequestErrors where the model cannot have them. */
export const lateAdapters = (
  { spec, adapters, tokensPerMicrobatch }: Plan,
  recipes: readonly AdapterRecipe[],
  data: readonly DataSummary[],
): AdapterPlan[] => planAdapters(recipes, spec, data, tokensPerMicrobatch, adapters.length);

/** What the stages, as they were opened, lack for these adapters; null where they have room. */
export function lacking(plan: Plan, late: readonly AdapterPlan[], data: readonly DataSummary[]): string | null {
  const { spec, stages, tokensPerMicrobatch, device } = plan;
  const { sizes } = stages[0]!;
  const rank = maxOf(onStages(late).map((adapter) => adapter.rank));
  if (rank > sizes.rank) return `room for rank ${rank}: they have it for ${sizes.rank}`;
  const capacity = roomOf(onStages(late));
  const without = (wanted: readonly Group[] = [], given: readonly Group[] = []) =>
    wanted.filter((group) => !given.includes(group)).join(", ");
  const factors = without(capacity.groups, sizes.groups);
  if (factors) return `room for factors of ${factors}`;
  for (const method of PEFT_METHODS) {
    const groups = without(capacity.methods[method], sizes.methods[method]);
    if (groups) return `room for ${DEFINITIONS[method].title} on ${groups}`;
  }
  const positions = maxOf(late.map(({ recipe }, i) => longestRow(recipe, spec, data[i]!)));
  if (positions > sizes.positions) return `room for rows of ${positions} tokens: they have it for ${sizes.positions}`;
  const rows = maxOf(late.map((adapter, i) => largestRows(adapter, data[i]!, tokensPerMicrobatch, device.rowTile)));
  return rows > sizes.rows ? `room for a micro-batch of ${rows} rows: they have it for ${sizes.rows}` : null;
}
