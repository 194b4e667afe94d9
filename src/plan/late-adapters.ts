// Adapters that join a run under way: they take what room the stages have, as these were opened.

import { maxOf } from "../base/shape.ts";
import { roomOf } from "../methods/layout.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import {
  type AdapterPlan,
  checkContrast,
  type DataSummary,
  largestRows,
  longestRow,
  onStages,
  planAdapter,
} from "./adapters.ts";
import type { Plan } from "./plan.ts";

/** Adapters as they would stand after those of the plan. Throws RequestErrors where the model cannot have them. */
export function lateAdapters(
  { spec, adapters, tokensPerMicrobatch }: Plan,
  recipes: readonly AdapterRecipe[],
  data: readonly DataSummary[],
): AdapterPlan[] {
  const late = recipes.map((recipe, i) => planAdapter(recipe, adapters.length + i, spec, data[i]!));
  for (const adapter of late) checkContrast(adapter, tokensPerMicrobatch);
  return late;
}

/** What the stages, as they were opened, lack for these adapters; null where they have room. */
export function lacking(plan: Plan, late: readonly AdapterPlan[], data: readonly DataSummary[]): string | null {
  const { spec, stages, tokensPerMicrobatch, device } = plan;
  const { sizes } = stages[0]!;
  const rank = maxOf(onStages(late).map((adapter) => adapter.rank));
  if (rank > sizes.rank) return `room for rank ${rank}: they have it for ${sizes.rank}`;
  const capacity = roomOf(onStages(late));
  const without = (what: keyof typeof capacity) => capacity[what].filter((group) => !sizes[what].includes(group));
  if (without("groups").length > 0) return `room for factors of ${without("groups").join(", ")}`;
  if (without("magnitudes").length > 0) return "room for the magnitudes of DoRA";
  if (without("vectors").length > 0) return "room for the vectors of VeRA";
  const positions = maxOf(late.map(({ recipe }, i) => longestRow(recipe, spec, data[i]!)));
  if (positions > sizes.positions) return `room for rows of ${positions} tokens: they have it for ${sizes.positions}`;
  const rows = maxOf(late.map((adapter, i) => largestRows(adapter, data[i]!, tokensPerMicrobatch, device.rowTile)));
  return rows > sizes.rows ? `room for a micro-batch of ${rows} rows: they have it for ${sizes.rows}` : null;
}
