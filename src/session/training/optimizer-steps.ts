// The optimizer steps of all adapters: decided when the first stage is sent one, reported when the last stage has been sent it.

import { now } from "../../base/clock.ts";
import type { OptimizerStep } from "../../bus/messages.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { clipCoefficient, gradNormOf } from "../../schedule/clip.ts";
import type { StepRef } from "../../schedule/lists.ts";
import { rateFactor } from "../../schedule/rate.ts";
import { adapterRef, finiteOrNull, type Listener } from "../events/events.ts";
import { rolloutScalars } from "../rollouts/scalars.ts";
import { type AdapterState, apply, waitsForEvaluation } from "../scheduling/adapter-state.ts";
import type { Executor } from "./executor.ts";

export type StepsOptions = {
  readonly stages: number;
  readonly executor: Executor;
  readonly of: (ref: StepRef) => AdapterState;
  readonly emit: Listener;
  /** Called with an adapter whose loss or gradient norm is not finite. */
  readonly failed: (adapter: AdapterState, message: string) => void;
  /** The end of an iteration: admissions and preemptions are settled before the next mini-batch. */
  readonly decided: () => void;
  /** All stages have been sent the adapter's step. */
  readonly made: (adapter: AdapterState) => Promise<void>;
};

/** Steps by which the mean time of one is measured. */
const COUNTED = 32;
/** Weight of the earlier rates in the smoothed one. */
const SMOOTHING = 0.8;

export class Steps {
  /** Steps that the first stage has been sent and the last has not; null for an adapter that has no slot any more. */
  readonly #made = new Map<string, OptimizerStep | null>();

  /** Tokens of all steps since the stages were opened. */
  tokens = 0;
  /** Milliseconds from one adapter's step to the next of any, in the mean; null before enough were made. */
  msPerStep: number | null = null;
  #counted = { since: now(), steps: 0 };

  constructor(private readonly options: StepsOptions) {}

  /** Sends these steps to one stage. */
  async step(stage: number, refs: readonly StepRef[]): Promise<void> {
    const { stages, executor, of, made } = this.options;
    for (const ref of refs) if (!this.#made.has(keyOf(ref))) this.#made.set(keyOf(ref), await this.#decide(ref));
    const steps = refs.flatMap((ref) => this.#made.get(keyOf(ref)) ?? []);
    if (steps.length > 0) await executor.step(stage, steps);
    if (stage < stages - 1) return;
    const isMade = (step: OptimizerStep | null): boolean => step !== null && !("dropped" in step);
    const adapters = refs.filter((ref) => isMade(this.#made.get(keyOf(ref))!)).map(of);
    for (const ref of refs) this.#made.delete(keyOf(ref));
    for (const adapter of adapters) this.#report(adapter);
    for (const adapter of adapters) await made(adapter);
  }

  /**
   * An adapter's step from its mini-batch's loss and gradient norm; none where they are not finite, which ends the adapter. Its
   * iteration ends here: the first stage has not begun the next mini-batch, and begins it only if the adapter stays active.
   */
  async #decide(ref: StepRef): Promise<OptimizerStep | null> {
    const { executor, of, failed, decided } = this.options;
    const adapter = of(ref);
    const { recipe, steps } = adapter.plan;
    const { loss, tokens, squares, preference, group, busiest } = await executor.result(ref);
    const { slot } = adapter;
    const dropped = slot === null ? null : ({ adapter: slot, dropped: true } as const);
    if (adapter.status === "ended") return dropped;
    const gradNorm = gradNormOf(squares);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      const message = `step ${ref.step + 1}: the loss is ${loss} and the gradient norm ${gradNorm}`;
      const isFirst = ref.step === 0 && !Number.isFinite(loss); // of weights that no step has changed
      const hint = isFirst
        ? "no step has changed a weight yet, so the base model's weights, or those of `from`, are damaged"
        : "lower the learning rate or set max_grad_norm";
      failed(adapter, `${message}; ${hint}`);
      return dropped;
    }
    const { learningRate: peak, weightDecay, maxGradNorm } = recipe.optimizer;
    const learningRate = peak * rateFactor(recipe.schedule, ref.step, steps);
    const coefficient = clipCoefficient(gradNorm, maxGradNorm);
    adapter.step = { loss, tokens, gradNorm, learningRate, step: ref.step + 1, preference, group, busiest };
    if (waitsForEvaluation(adapter, ref.step + 1)) apply(adapter, "evaluationDue");
    decided();
    return {
      adapter: adapter.slot!,
      t: ref.step + 1,
      learningRate,
      ratio: recipe.loraPlusRatio,
      weightDecay,
      coefficient,
      ...ruleOf(recipe.optimizer),
    };
  }

  /** Counts and reports the step that an adapter has made. */
  #report(adapter: AdapterState): void {
    const { plan } = adapter;
    const { loss, tokens, gradNorm, learningRate, step, preference, group, busiest } = adapter.step!;
    const time = now();
    const tokensPerSecond = (1000 * tokens) / Math.max(1e-3, time - adapter.steppedAt);
    if (++this.#counted.steps === COUNTED) {
      this.msPerStep = (time - this.#counted.since) / COUNTED;
      this.#counted = { since: time, steps: 0 };
    }
    adapter.steps = step;
    adapter.tokens += tokens;
    this.tokens += tokens;
    adapter.firstLoss ??= loss;
    adapter.lastLoss = loss;
    adapter.rate = adapter.rate === null ? tokensPerSecond : SMOOTHING * adapter.rate + (1 - SMOOTHING) * tokensPerSecond;
    adapter.steppedAt = time;
    this.options.emit({
      type: "step",
      ...adapterRef(plan),
      step,
      steps: plan.steps,
      epoch: Math.floor((step - 1) / plan.stepsPerEpoch) + 1,
      loss,
      learningRate,
      gradNorm,
      tokens,
      tokensPerSecond,
      preference: preference && { ...preference, margin: finiteOrNull(preference.margin) },
      ...(busiest === null ? {} : { busiest }),
      ...(group && adapter.rollouts ? { rollouts: rolloutScalars(adapter.plan.recipe, adapter.rollouts, group) } : {}),
    });
  }
}

/** The fields that only this optimizer has. */
export const ruleOf = (optimizer: AdapterRecipe["optimizer"]) => {
  if (optimizer.name === "sgd") return { momentum: optimizer.momentum, nesterov: optimizer.nesterov };
  return { beta1: optimizer.beta1, beta2: optimizer.beta2, eps: optimizer.eps };
};

const keyOf = ({ adapter, step }: StepRef): string => `${adapter}.${step}`;
