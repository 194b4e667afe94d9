// Adapters that join a run under way: they take what room the stages have, as these were opened.

import { maxOf } from "../base/shape.ts";
import { formatBytes } from "../base/units.ts";
import { GROUP_NAMES } from "../families/linears.ts";
import { DEFINITIONS, PEFT_METHODS } from "../methods/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { blockBytes, lowSizes, poolBytes, productSizes } from "./adapter-memory.ts";
import {
  type AdapterPlan,
  checkContrast,
  type DataSummary,
  largestRows,
  longestRow,
  onStages,
  planAdapter,
  slotNeed,
} from "./adapters.ts";
import type { Plan } from "./plan.ts";

/** Adapters as they would stand after those of the plan. Throws RequestErrors where the model cannot have them. */
export function lateAdapters(
  { spec, adapters, tokensPerMicrobatch, device }: Plan,
  recipes: readonly AdapterRecipe[],
  data: readonly DataSummary[],
): AdapterPlan[] {
  const limits = { tokensPerMicrobatch, rowTile: device.rowTile };
  const late = recipes.map((recipe, i) => planAdapter(recipe, adapters.length + i, spec, data[i]!, limits));
  for (const adapter of late) checkContrast(adapter, tokensPerMicrobatch);
  return late;
}

/** What the stages, as they were opened, lack for these adapters; null where they have room. */
export function lacking(plan: Plan, late: readonly AdapterPlan[], data: readonly DataSummary[]): string | null {
  const { spec, stages, tokensPerMicrobatch, device, slots } = plan;
  const { sizes } = stages[0]!;
  const products = productSizes(onStages(late));
  for (const method of PEFT_METHODS) {
    const groups = (products[method] ?? []).filter((group) => !sizes.products[method]?.includes(group)).join(", ");
    if (groups) return `room for ${DEFINITIONS[method].title} on ${groups}`;
  }
  const needs = [...plan.adapters, ...late].map(slotNeed);
  for (const { layerRange, sizes, memory } of stages) {
    const low = lowSizes(needs, slots, layerRange, sizes.rows);
    const groups = GROUP_NAMES.filter((group) => (low[group] ?? 0) > (sizes.low[group] ?? 0)).join(", ");
    if (groups) return `room for the ranks of a micro-batch on ${groups}`;
    const bytes = poolBytes(spec, layerRange, slots, blockBytes(spec, layerRange, needs, device));
    if (bytes > memory.adapters)
      return `room for adapters of ${formatBytes(bytes)}: they have it for ${formatBytes(memory.adapters)}`;
  }
  const positions = maxOf(late.map(({ recipe }, i) => longestRow(recipe, spec, data[i]!)));
  if (positions > sizes.positions) return `room for rows of ${positions} tokens: they have it for ${sizes.positions}`;
  const rows = maxOf(late.map((adapter, i) => largestRows(adapter, data[i]!, tokensPerMicrobatch, device.rowTile)));
  return rows > sizes.rows ? `room for a micro-batch of ${rows} rows: they have it for ${sizes.rows}` : null;
}
