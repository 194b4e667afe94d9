// A job that learns from rewards: the primitives answer, score and learn for it, to the bytes of `mlora run`.

import { RunError } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import { inputLength, type Row } from "../../schedule/pack.ts";
import { rateFactor } from "../../schedule/rate.ts";
import { stepsOf } from "../../schedule/steps.ts";
import { type Answering, RolloutMaker } from "../rollouts/rollouts.ts";
import { answerScalars } from "../rollouts/scalars.ts";
import type { JobStep } from "./job.ts";
import type { Primitives } from "./primitives.ts";

export type RolloutJobOptions = {
  readonly notice: (text: string) => void;
  /** Aborted: no further answers are made, and the steps end with its reason between two batches of them. */
  readonly signal: AbortSignal;
};

/** A step with what its answers came to, under TRL's names. */
export type RolloutStep = JobStep & {
  readonly scalars: Readonly<Record<string, number>>;
  /** The next step learns other answers: what is saved now is continued from here. */
  readonly endsBatch: boolean;
};

/**
 * The steps of an adapter from where it stands, which must be between two batches of answers. Throws what the signal is aborted
 * with, and RunErrors: `reward.failed`, and `job.numbers` where a loss is not finite.
 */
export async function* rolloutSteps(
  on: Primitives,
  adapter: AdapterPlan,
  train: readonly Row[],
  { notice, signal }: RolloutJobOptions,
): AsyncGenerator<RolloutStep> {
  const { name, recipe, steps, stepsPerEpoch } = adapter;
  const { tokensPerMicrobatch, recipe: run } = on.plan;
  const maker = new RolloutMaker({ path: run.model.path, tokensPerMicrobatch, notice: (_, text) => notice(text) });
  const { batchSize } = adapter.work;
  while (on.stepsOf(name) < steps) {
    const made = await maker.make({ plan: adapter, train, from: on.stepsOf(name) }, answeringOf(on, name), signal);
    for (const { rows } of stepsOf(made.work, tokensPerMicrobatch, made.from)) {
      const step = on.stepsOf(name);
      if (step === made.until) break;
      const of = rows.map((row) => made.rows[row]!);
      const { policy: group, temperature } = made;
      const losses = await on.forwardBackward(name, of, { group, temperature, batchSize });
      if (!Number.isFinite(losses.loss))
        throw new RunError("job.numbers", `step ${step + 1}: the loss is ${losses.loss}`, "lower the learning rate");
      const learningRate = recipe.optimizer.learningRate * rateFactor(recipe.schedule, step, steps);
      const { gradNorm } = await on.step(name, { learningRate });
      yield {
        ...{ step: step + 1, steps, epoch: Math.floor(step / stepsPerEpoch) + 1, loss: losses.loss, gradNorm, learningRate },
        endsEpoch: (step + 1) % stepsPerEpoch === 0 || step + 1 === steps,
        endsBatch: step + 1 === made.until,
        ...{ accuracy: losses.correct / Math.max(1, losses.targets), tokens: sum(of.map(inputLength)) },
        rows: [...new Set(made.answers.map(({ row }) => row))],
        scalars: answerScalars(rolloutsOf(recipe.objective)!, made),
      };
    }
  }
}

/** An adapter of the primitives that answers. */
function answeringOf(on: Primitives, name: string): Answering {
  return {
    async answer(all, signal) {
      const sampling = all.map(({ prompt, limit, stops, seed, sampling, got }) =>
        on.stream(name, [prompt], { maxTokens: limit, stops, seed, sampling, signal }, got),
      );
      await Promise.all(sampling);
    },
    async logProbs(of, rows, { temperature, batchSize, policy: group }) {
      const nothing = { advantage: 0, scale: 0, old: null, reference: null };
      const scored = rows.map((row) => ({ ...row, completion: nothing }));
      const { rows: found } = await on.forward(of === "base" ? null : name, scored, { group, temperature, batchSize });
      return found.map(({ logProbs }) => logProbs.map((value) => (Number.isNaN(value) ? 0 : value)));
    },
  };
}
