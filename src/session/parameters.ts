// An adapter's factors as the stages hold them: one block on each stage, for its layers. Files have B as PEFT does; blocks have
// it transposed.

import { hasLinear } from "../families/parts.ts";
import { putFactor, takeFactor } from "../files/factors.ts";
import { type AdapterLayout, type FactorTensor, factorPlace, layoutAdapter, placeAmong, tensorsIn } from "../methods/layout.ts";
import { type BlockName, type Blocks, blocksIn, stateOf, type Values } from "../methods/optimizers.ts";
import { hasTable, isTableKind } from "../methods/tables.ts";
import type { AdapterPlan, Plan, StagePlan } from "../plan/plan.ts";

type StageRanges = Pick<Plan, "spec"> & { readonly stages: readonly Pick<StagePlan, "layerRange">[] };
type Shape = Pick<AdapterPlan, "rank" | "targets" | "method" | "optimizer" | "places" | "tables">;

/** How an adapter's block is laid out on a stage. */
export const layoutOf = ({ spec, stages }: StageRanges, stage: number, adapter: Shape): AdapterLayout =>
  layoutAdapter(spec, stages[stage]!.layerRange, adapter);

/** The factors in the blocks of all stages, first stage first, in the order of the layers. */
export const factorsOf = (plan: StageRanges, adapter: Shape, blocks: readonly Float32Array[]): FactorTensor[] =>
  blocks.flatMap((block, stage) => {
    const layout = layoutOf(plan, stage, adapter);
    return tensorsIn(plan.spec, plan.stages[stage]!.layerRange, adapter).map((at) => {
      const place = factorPlace(plan.spec, layout, at.layer, at.linear, at.factor);
      return { ...at, values: takeFactor(block, place) };
    });
  });

/** The reverse: a block for each stage; what no factor fills is zero. */
export const blocksOf = (plan: StageRanges, adapter: Shape, factors: readonly FactorTensor[]): Float32Array[] =>
  arraysOf(plan, adapter, "params", factors) as Float32Array[];

/** All that an adapter's optimizer keeps, on each stage, from the factors of each array. */
export function stateBlocks(
  plan: StageRanges,
  adapter: Shape,
  factors: (what: BlockName) => readonly FactorTensor<Values>[],
): Blocks[] {
  const all = blocksIn(adapter.optimizer).map((what) => [what, arraysOf(plan, adapter, what, factors(what))] as const);
  return plan.stages.map((_, i) => Object.fromEntries(all.map(([what, of]) => [what, of[i]!])) as unknown as Blocks);
}

const arraysOf = (plan: StageRanges, adapter: Shape, what: BlockName, factors: readonly FactorTensor<Values>[]): Values[] =>
  plan.stages.map(({ layerRange }, stage) => {
    const layout = layoutOf(plan, stage, adapter);
    const { dtype, per, zero } = stateOf(adapter.optimizer)[what]!;
    const block: Values = dtype === "u8" ? new Uint8Array(layout.size).fill(zero) : new Float32Array(layout.size / per);
    for (const { layer, linear, factor, values } of factors)
      if (isTableKind(linear) ? hasTable(plan.spec, layerRange, linear) : hasLinear(plan.spec, layerRange, layer, linear))
        putFactor(block, placeAmong(factorPlace(plan.spec, layout, layer, linear, factor), per), values);
    return block;
  });
