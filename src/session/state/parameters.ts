// An adapter's factors as the stages hold them: one block on each stage, for its layers. Files have B as PEFT does; blocks have
// it transposed.

import { RunError } from "../../base/errors.ts";
import { OTHER_VERSION } from "../../files/checkpoint.ts";
import { putFactor, takeFactor } from "../../files/factors.ts";
import {
  type AdapterLayout,
  type FactorAt,
  type FactorTensor,
  factorPlace,
  layoutAdapter,
  placeAmong,
  tensorsIn,
} from "../../methods/layout.ts";
import { type BlockName, type Blocks, blocksIn, stateOf, type Values } from "../../methods/optimizers.ts";
import type { AdapterPlan, Plan, StagePlan } from "../../plan/plan.ts";

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

/** The reverse: a block for each stage. Throws as `stateBlocks` does. */
export const blocksOf = (plan: StageRanges, adapter: Shape, factors: readonly FactorTensor[]): Float32Array[] =>
  arraysOf(plan, adapter, "params", factors) as Float32Array[];

/**
 * All that an adapter's optimizer keeps, on each stage, from the factors of each array. Throws a RunError, `checkpoint.other`,
 * where one that the adapter has is missing, or another is among them: nothing stands for what was not read.
 */
export function stateBlocks(
  plan: StageRanges,
  adapter: Shape,
  factors: (what: BlockName) => readonly FactorTensor<Values>[],
): Blocks[] {
  const all = blocksIn(adapter.optimizer).map((what) => [what, arraysOf(plan, adapter, what, factors(what))] as const);
  return plan.stages.map((_, i) => Object.fromEntries(all.map(([what, of]) => [what, of[i]!])) as unknown as Blocks);
}

function arraysOf(plan: StageRanges, adapter: Shape, what: BlockName, factors: readonly FactorTensor<Values>[]): Values[] {
  const given = new Map(factors.map((of) => [nameOf(of), of.values]));
  const { dtype, per, zero } = stateOf(adapter.optimizer)[what]!;
  const blocks = plan.stages.map(({ layerRange }, stage) => {
    const layout = layoutOf(plan, stage, adapter);
    const block: Values = dtype === "u8" ? new Uint8Array(layout.size).fill(zero) : new Float32Array(layout.size / per);
    for (const at of tensorsIn(plan.spec, layerRange, adapter)) {
      const values = given.get(nameOf(at));
      if (!values) throw otherFactors(`no ${what} of ${nameOf(at)}`);
      putFactor(block, placeAmong(factorPlace(plan.spec, layout, at.layer, at.linear, at.factor), per), values);
      given.delete(nameOf(at));
    }
    return block;
  });
  const [more] = given.keys();
  if (more !== undefined) throw otherFactors(`${what} of ${more}, which it does not train`);
  return blocks;
}

const nameOf = ({ layer, linear, factor }: FactorAt): string => `layer ${layer}, ${linear}, ${factor}`;
const otherFactors = (what: string): RunError =>
  new RunError("checkpoint.other", `an adapter as it was saved has ${what}`, OTHER_VERSION);
