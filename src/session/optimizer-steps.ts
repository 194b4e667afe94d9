// The optimizer steps of all adapters: decided when the first stage is told, reported when the last has been.

import { now } from "../base/clock.ts";
import type { OptimizerStep } from "../bus/messages.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import type { StepRef } from "../schedule/lists.ts";
import { rateFactor } from "../schedule/rate.ts";
import { type AdapterState, waitsForEvaluation } from "./adapter-state.ts";
import type { Events } from "./events.ts";
import type { Executor } from "./executor.ts";

export type StepsOptions = {
  readonly stages: number;
  readonly executor: Executor;
  readonly of: (ref: StepRef) => AdapterState;
  readonly events: Events;
  /** An adapter whose numbers are none. */
  readonly failed: (live: AdapterState, message: string) => void;
  /** The end of an iteration: who comes, goes or is preempted is settled before the next mini-batch. */
  readonly decided: () => void;
  /** All stages have been told of the adapter's step. */
  readonly made: (live: AdapterState) => Promise<void>;
};

/** Of the latest rates, what counts of the one before. */
const SMOOTHING = 0.8;

export class Steps {
  /** Of steps that the first stage has been told and the last has not: null for an adapter that failed. */
  readonly #made = new Map<string, OptimizerStep | null>();

  /** Tokens of all steps that were made here. */
  tokens = 0;

  constructor(private readonly options: StepsOptions) {}

  /** One stage's part of these steps. */
  async step(stage: number, refs: readonly StepRef[]): Promise<void> {
    const { stages, executor, of, made } = this.options;
    for (const ref of refs) if (!this.#made.has(keyOf(ref))) this.#made.set(keyOf(ref), await this.#decide(ref));
    const steps = refs.flatMap((ref) => this.#made.get(keyOf(ref)) ?? []);
    if (steps.length > 0) await executor.step(stage, steps);
    if (stage < stages - 1) return;
    const who = refs.filter((ref) => this.#made.get(keyOf(ref)) !== null).map(of);
    for (const ref of refs) this.#made.delete(keyOf(ref));
    for (const live of who) this.#report(live);
    for (const live of who) await made(live);
  }

  /**
   * An adapter's step from its mini-batch's loss and gradient norm; null where they are no numbers, which ends the adapter. Here its
   * iteration ends: the first stage has not begun its next mini-batch, and does so only if it stays active.
   */
  async #decide(ref: StepRef): Promise<OptimizerStep | null> {
    const { executor, of, failed, decided } = this.options;
    const live = of(ref);
    const { recipe, steps } = live.plan;
    const { loss, tokens, squares, preference } = await executor.result(ref);
    if (live.status === "ended") return null;
    const gradNorm = gradNormOf(squares);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      const message = `step ${ref.step + 1}: the loss is ${loss} and the gradient norm ${gradNorm}`;
      failed(live, `${message}; lower the learning rate or set max_grad_norm`);
      return null;
    }
    const { learningRate: peak, weightDecay, maxGradNorm } = recipe.optimizer;
    const learningRate = peak * rateFactor(recipe.schedule, ref.step, steps);
    const coefficient = clipCoefficient(gradNorm, maxGradNorm);
    live.step = { loss, tokens, gradNorm, learningRate, step: ref.step + 1, preference };
    if (live.status === "active" && waitsForEvaluation(live, ref.step + 1)) live.status = "held";
    decided();
    return {
      adapter: live.slot!,
      t: ref.step + 1,
      learningRate,
      ratio: recipe.loraPlusRatio,
      weightDecay,
      coefficient,
      ...ruleOf(recipe.optimizer),
    };
  }

  /** Counts and tells of the step that an adapter has made. */
  #report(live: AdapterState): void {
    const { plan } = live;
    const { loss, tokens, gradNorm, learningRate, step, preference } = live.step!;
    const time = now();
    const tokensPerSecond = (1000 * tokens) / Math.max(1e-3, time - live.steppedAt);
    live.steps = step;
    live.tokens += tokens;
    this.tokens += tokens;
    live.firstLoss ??= loss;
    live.lastLoss = loss;
    live.rate = live.rate === null ? tokensPerSecond : SMOOTHING * live.rate + (1 - SMOOTHING) * tokensPerSecond;
    live.steppedAt = time;
    this.options.events.stepped({
      adapter: plan.index,
      step,
      steps: plan.steps,
      epoch: Math.floor((step - 1) / plan.stepsPerEpoch) + 1,
      loss,
      learningRate,
      gradNorm,
      tokens,
      tokensPerSecond,
      preference,
    });
  }
}

/** What is the optimizer's own. */
export const ruleOf = (optimizer: AdapterRecipe["optimizer"]) => {
  if (optimizer.name === "sgd") return { momentum: optimizer.momentum, nesterov: optimizer.nesterov };
  return { beta1: optimizer.beta1, beta2: optimizer.beta2, eps: optimizer.eps };
};

const keyOf = ({ adapter, step }: StepRef): string => `${adapter}.${step}`;
