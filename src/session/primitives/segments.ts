// Rows of a call of the primitives as micro-batches and segments, cut and weighted as a run's are.

import { sum } from "../../base/shape.ts";
import { isPreference, type Objective } from "../../objectives/registry.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import { inputLength, type Row, type Segment } from "../../schedule/pack.ts";
import { cut } from "../../schedule/steps.ts";
import { totalsOf } from "../evaluation/batches.ts";
import type { LossOptions } from "./calls.ts";
import { checkFits, checkRows } from "./checks.ts";

/** An adapter that is trained, as its segments need it. `tokens`: those of its mini-batch so far. */
export type SegmentOwner = { readonly plan: AdapterPlan; readonly steps: number; tokens: number };

export type CutRows = {
  readonly microBatches: readonly (readonly number[])[];
  readonly segmentOf: (rows: readonly number[], slot: number) => Segment;
};

/** Throws a RequestError, `primitives.rows`. */
export function cutRows(
  plan: Plan,
  trained: SegmentOwner,
  rows: readonly Row[],
  options: LossOptions,
  isTraining: boolean,
): CutRows {
  const { recipe, name } = trained.plan;
  const { objective = recipe.objective, references, policy, group, temperature = 1, batchSize = recipe.batchSize } = options;
  checkRows(name, plan.spec.vocab, rows, objective, references, policy ?? group);
  const microBatches = cut([...rows.keys()], rows.map(inputLength), batchSize, plan.tokensPerMicrobatch);
  checkFits(name, plan, rows, microBatches, objective);
  const totals = totalsOf(rows, objective);
  const segmentOf = (of: readonly number[], slot: number): Segment => {
    const samples = of.map((row) => rows[row]!);
    const segment = {
      ...{ adapter: slot, samples, seed: recipe.seed, step: trained.steps, temperature },
      ...{ dropout: isTraining ? recipe.dropout : 0, firstRow: trained.tokens },
      ...weighing(objective, options, rows, of, totals),
    };
    if (isTraining) trained.tokens += sum(samples.map(inputLength));
    return segment;
  };
  return { microBatches, segmentOf };
}

/** The same for the base model by itself, which learns nothing. */
export function cutBaseRows(plan: Plan, rows: readonly Row[], { temperature = 1, batchSize = 1 }: LossOptions): CutRows {
  const objective: Objective = { name: "sft" };
  const microBatches = cut([...rows.keys()], rows.map(inputLength), batchSize, plan.tokensPerMicrobatch);
  checkFits("", plan, rows, microBatches, objective);
  const nothing = { seed: 0, step: 0, dropout: 0, firstRow: 0, weight: 0 };
  return {
    microBatches,
    segmentOf: (of, slot) => ({ adapter: slot, samples: of.map((row) => rows[row]!), ...nothing, temperature }),
  };
}

/** How a segment's loss is made. */
function weighing(
  objective: Objective,
  { references, policy, group }: LossOptions,
  rows: readonly Row[],
  of: readonly number[],
  totals: ReturnType<typeof totalsOf>,
): Pick<Segment, "weight" | "policy" | "group" | "preference"> {
  if (group) return { weight: 1, group };
  if (policy) return { weight: 1, policy };
  const weight = rows[0]!.weights ? 1 : 1 / totals.tokens;
  if (!isPreference(objective)) return { weight };
  return { weight, preference: { objective, totals, references: references ? of.map((row) => references[row]!) : null } };
}
