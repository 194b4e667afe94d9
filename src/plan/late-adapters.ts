// Adapters that join a run under way: they take what room the stages have, as these were opened.

import { maxOf } from "../base/shape.ts";
import { count, counted, formatBytes } from "../base/units.ts";
import { LOW_KEYS } from "../methods/layout.ts";
import { DEFINITIONS, PEFT_METHODS } from "../methods/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { lowSizes, lowWidths, productSizes } from "./adapter-memory.ts";
import { type AdapterPlan, type DataSummary, largestRows, longestRow, onStages, planAdapters } from "./adapters.ts";
import { bytesOnStages, gradientsOnStages, type Plan } from "./plan.ts";

/** Adapters as they would stand after those of the plan. Throws RequestErrors where the model cannot have them. */
export function lateAdapters(
  { spec, adapters, tokensPerMicrobatch }: Plan,
  recipes: readonly AdapterRecipe[],
  data: readonly DataSummary[],
): AdapterPlan[] {
  return planAdapters(recipes, spec, data, tokensPerMicrobatch, adapters.length);
}

/** What the stages, as they were opened, lack for these adapters; null where they have room. */
export function lacking(plan: Plan, late: readonly AdapterPlan[], data: readonly DataSummary[]): string | null {
  const { spec, stages, tokensPerMicrobatch, device } = plan;
  const { sizes } = stages[0]!;
  const products = productSizes(onStages(late));
  for (const method of PEFT_METHODS) {
    const groups = (products[method] ?? []).filter((group) => !sizes.products[method]?.includes(group)).join(", ");
    if (groups) return `room for ${DEFINITIONS[method].title} on ${groups}`;
  }
  for (const [stage, { layerRange, sizes }] of stages.entries()) {
    const low = lowSizes(lowWidths(onStages(late), layerRange), sizes.rows, sizes.chunk);
    const groups = LOW_KEYS.filter((group) => (low[group] ?? 0) > (sizes.low[group] ?? 0)).join(", ");
    if (groups) return `room for rank ${maxOf(onStages(late).map(({ rank }) => rank))} on ${groups}`;
    const most = maxOf(late.map((adapter) => bytesOnStages(plan, adapter)[stage]!));
    const gradients = maxOf(late.map((adapter) => gradientsOnStages(plan, adapter)[stage]!));
    if (gradients > sizes.gradients[0]!)
      return `room for the gradients of an adapter: ${formatBytes(4 * gradients)}, they have it for ${formatBytes(4 * sizes.gradients[0]!)}`;
    if (most > sizes.blockBytes)
      return `room for an adapter of ${formatBytes(most)}: they have it for ${formatBytes(sizes.blockBytes)}`;
  }
  const positions = maxOf(late.map(({ recipe }, i) => longestRow(recipe, spec, data[i]!)));
  if (positions > sizes.positions)
    return `room for rows of ${counted(positions, "token")}: they have it for ${count(sizes.positions)}`;
  const answers = maxOf(late.map(({ work, prompts }) => (prompts === null ? 0 : maxOf(work.lengths) + 1)));
  if (answers > (sizes.cache?.capacity ?? 0)) return `cache for answers of ${counted(answers, "token")} with their prompts`;
  const rows = maxOf(late.map((adapter, i) => largestRows(adapter, data[i]!, tokensPerMicrobatch, device.rowTile)));
  return rows > sizes.rows
    ? `room for a micro-batch of ${counted(rows, "token")}: they have it for ${count(sizes.rows)}`
    : null;
}
