// How many floating-point operations a run is: what its time is estimated from. Products alone; all else is in the share of a
// device's peak that they reach.

import { keepsInputsAlone } from "../base/recomputation.ts";
import { range, sum, sumOfMany } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { linearElements } from "../families/linears.ts";
import { familyOf } from "../families/registry.ts";
import type { Lengths } from "../schedule/steps.ts";
import type { AdapterPlan } from "./adapters.ts";
import type { Plan } from "./plan.ts";

/** Lengths of sequences that are read in one evaluation, for each adapter. */
export type EvaluationLengths = readonly Lengths[];

export type Operations = { readonly training: number; readonly evaluation: number };

/** Two operations a weight: of a forward product, of the gradient of its input, and of that of a trained weight. */
const PRODUCT = 2;
/** Backward over forward: of attention, whose scores are computed again; of a trained weight, which has two gradients. */
const [ATTENTION_BACKWARD, TRAINED_BACKWARD] = [2.5, 2];

/** The attentions of a model: features of all heads of each, and the latest tokens that a token sees; null for all. */
type Attention = { readonly features: number; readonly window: number | null };

const attentionsOf = (spec: ModelSpec): readonly Attention[] =>
  range(spec.layers).flatMap((layer) =>
    familyOf(spec)
      .layer(spec, layer)
      .flatMap((of) => (of.op === "attention" ? [{ features: of.heads.heads * of.heads.headDim, window: of.window }] : [])),
  );

/** Of scores and of their product with the values, for tokens that see what is before them, within the window. */
function attention(spec: ModelSpec, lengths: Lengths): number {
  const features = new Map<number | null, number>();
  for (const of of attentionsOf(spec)) features.set(of.window, (features.get(of.window) ?? 0) + of.features);
  let operations = 0;
  for (const [window, wide] of features)
    for (let i = 0; i < lengths.length; i++) {
      const length = lengths[i]!;
      const seen = Math.min(length, window ?? length);
      operations += 2 * PRODUCT * wide * seen * (length - seen / 2);
    }
  return operations;
}

/** How often an adapter's held-out rows are read: before its first step, every `evalEvery` steps, and after the last. */
export const evaluationsOf = ({ recipe: { evalEvery }, steps, evalRows }: AdapterPlan): number =>
  evalRows === 0 ? 0 : 2 + (evalEvery === null ? 0 : Math.floor((steps - 1) / evalEvery));

/** Of all steps and evaluations; `evaluated` has an adapter's lengths at its index. */
export function operationsOf(plan: Plan, evaluated: EvaluationLengths): Operations {
  const { spec, targets, stages } = plan;
  const { recomputation } = stages[0]!.sizes;
  const linear = PRODUCT * linearElements(spec);
  const head = PRODUCT * targets * spec.vocab * spec.hidden;
  const passes = keepsInputsAlone(recomputation) ? 3 : 2;
  const each = plan.adapters.map((adapter, i): Operations => {
    const { parameters, tokens, work } = adapter;
    const own = PRODUCT * parameters;
    const rows = work.lengths;
    const scores = (attention(spec, rows) / Math.max(1, sumOfMany(rows))) * (passes - 1 + ATTENTION_BACKWARD);
    const token = passes * linear + 2 * head + (passes - 1 + TRAINED_BACKWARD) * own + scores;
    const held = evaluated[i] ?? [];
    return {
      training: tokens * token,
      evaluation: evaluationsOf(adapter) * (sumOfMany(held) * (linear + head + own) + attention(spec, held)),
    };
  });
  return { training: sum(each.map((of) => of.training)), evaluation: sum(each.map((of) => of.evaluation)) };
}
