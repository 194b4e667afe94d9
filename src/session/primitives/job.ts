// A job: an adapter that the primitives train on rows that are known, to the bytes of `mlora run` with the same recipe.

import { RunError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { isPreference, type Objective, referenceOf, rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { inputLength, type Row } from "../../schedule/pack.ts";
import { rateFactor } from "../../schedule/rate.ts";
import { stepsOf } from "../../schedule/steps.ts";
import type { Losses } from "./batches.ts";
import type { Primitives } from "./primitives.ts";

/** Whether an adapter's rows have two sequences, so that its accuracy is of rows. */
export const isPaired = ({ objective }: Pick<AdapterRecipe, "objective">): boolean => isPreference(objective);

/** Whether an adapter learns from rewards of its own answers. */
export const isRewarded = ({ objective }: Pick<AdapterRecipe, "objective">): boolean => rolloutsOf(objective) !== null;

/** Of each row, the log-probabilities of its two sequences. */
export type JobReferences = readonly (readonly [own: number, other: number])[];

export type JobStep = {
  /** Counts from 1. */
  readonly step: number;
  readonly steps: number;
  /** Counts from 1; `endsEpoch`: no further step is of it. */
  readonly epoch: number;
  readonly endsEpoch: boolean;
  readonly loss: number;
  readonly accuracy: number;
  /** Tokens of the step's rows that the model reads. */
  readonly tokens: number;
  /** Of the training rows. */
  readonly rows: readonly number[];
  readonly gradNorm: number;
  readonly learningRate: number;
};

/** Rows that go through the model in one call where nothing is learned. */
const CHUNK = 64;

/**
 * What the objective measures rows against; null where it needs none. To be called before the adapter's first step: its
 * reference is the adapter as it is then.
 */
export async function measureReferences(on: Primitives, { name, recipe }: AdapterPlan, rows: readonly Row[]) {
  const { objective } = recipe;
  if (referenceOf(objective) === null) return null;
  const found: (readonly [number, number])[] = [];
  for (let from = 0; from < rows.length; from += CHUNK) {
    const of = rows.slice(from, from + CHUNK);
    const scored = await on.forward(name, of, { references: of.map(() => [0, 0] as const) });
    found.push(...scored.rows.map(({ logProbs, other }) => [total(logProbs), total(other!)] as const));
  }
  return found;
}

/** Sum over targets. */
const total = (logProbs: Float32Array): number => sum([...logProbs].filter((value) => !Number.isNaN(value)));

/**
 * The steps of an adapter from where it stands, each when it is made; whoever stops reading stops the job between two steps.
 * `references` are of all rows. Throws a RunError, `job.numbers`, where a loss is not finite.
 */
export async function* trainSteps(
  on: Primitives,
  adapter: AdapterPlan,
  train: readonly Row[],
  references: JobReferences | null,
): AsyncGenerator<JobStep> {
  const { name, recipe, work, steps, stepsPerEpoch } = adapter;
  let step = on.stepsOf(name);
  for (const { epoch, rows } of stepsOf(work, on.plan.tokensPerMicrobatch, step)) {
    const of = rows.map((row) => train[row]!);
    const losses = await on.forwardBackward(name, of, references ? { references: rows.map((row) => references[row]!) } : {});
    const { loss } = losses;
    if (!Number.isFinite(loss))
      throw new RunError("job.numbers", `step ${step + 1}: the loss is ${loss}`, "lower the learning rate");
    const learningRate = recipe.optimizer.learningRate * rateFactor(recipe.schedule, step, steps);
    const { gradNorm } = await on.step(name, { learningRate });
    step++;
    yield {
      ...{ step, steps, epoch: epoch + 1, endsEpoch: step % stepsPerEpoch === 0 || step === steps },
      ...{ loss, accuracy: accuracyOf(losses, recipe.objective, rows, references), gradNorm, learningRate },
      ...{ tokens: sum(of.map(inputLength)), rows },
    };
  }
}

/** The mean loss of an adapter as it is on rows that it is measured on, and its accuracy. */
export async function evaluateRows(
  on: Primitives,
  { name, recipe }: AdapterPlan,
  rows: readonly Row[],
  references: JobReferences | null,
): Promise<{ readonly loss: number; readonly accuracy: number }> {
  const { objective } = recipe;
  let [loss, right, weight] = [0, 0, 0];
  for (let from = 0; from < rows.length; from += CHUNK) {
    const of = rows.slice(from, from + CHUNK);
    const own = references?.slice(from, from + CHUNK) ?? null;
    const losses = await on.forward(name, of, own ? { references: own } : {});
    const share = isPreference(objective) ? of.length : losses.targets;
    loss += share * losses.loss;
    right += share * accuracyOf(losses, objective, [...of.keys()], own);
    weight += share;
  }
  return { loss: loss / weight, accuracy: right / weight };
}

/** The share of targets that are the likeliest token; of preferences, of rows whose better answer gains the more. */
function accuracyOf(
  { rows, correct, targets }: Losses,
  objective: Objective,
  indices: readonly number[],
  references: JobReferences | null,
): number {
  if (!isPreference(objective)) return correct / targets;
  const better = rows.filter(({ logProbs, other }, i) => {
    const [own, against] = references?.[indices[i]!] ?? [0, 0];
    return other !== undefined && total(logProbs) - own > total(other) - against;
  });
  return better.length / rows.length;
}
