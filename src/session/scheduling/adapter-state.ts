// The state of an adapter during a run: where it stands, and how far it has come.

import { now } from "../../base/clock.ts";
import { isQuantised } from "../../base/precision.ts";
import { isUnread } from "../../data/rows.ts";
import type { Progress } from "../../files/checkpoint.ts";
import { withoutLimits } from "../../objectives/grpo.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import type { Row } from "../../schedule/pack.ts";
import { keptDigestOf } from "../../sources/tokens.ts";
import type { Evaluation } from "../evaluation/evaluate.ts";
import { keepsBest } from "../evaluation/own-metrics.ts";
import type { References } from "../evaluation/references.ts";
import type { AdapterResult } from "../events/events.ts";
import type { Rollouts } from "../rollouts/rollouts.ts";
import type { Source } from "../state/sources.ts";
import type { MiniBatch } from "../training/executor.ts";
import { initialLifecycle, type Lifecycle, type LifecycleEvent, transition } from "./transition.ts";

/** The tokenised rows of an adapter, and the saved adapters that it is made from. */
export type AdapterData = {
  readonly train: readonly Row[];
  readonly eval: readonly Row[];
  readonly sources?: readonly Source[];
};

export type MadeStep = {
  readonly step: number; // from 1
  readonly loss: number;
  readonly tokens: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly preference: MiniBatch["preference"];
  readonly busiest: MiniBatch["busiest"];
  readonly group: MiniBatch["group"];
};

/** A copy that continues from an adapter's state after the step `after`. `isMade`: that state is being saved for it. */
export type Fork = { readonly plan: AdapterPlan; readonly data: AdapterData; readonly after: number; isMade: boolean };

/** Made when an adapter enters the run; where it stands is changed by `apply` alone. */
export class AdapterState implements Lifecycle {
  readonly status: Lifecycle["status"];
  readonly nextStatus: Lifecycle["nextStatus"];
  readonly isPaused: boolean;
  /** It has had a slot before, since the stages were opened. */
  wasAdmitted = false;
  /** Its slot on the stages, or null. */
  slot: number | null = null;
  /** Steps that it had made when it came to the devices last. */
  turnFrom = 0;
  /** Mini-batches that have begun, and steps that all stages have been sent. */
  begun = 0;
  steps = 0;
  /** The step that has been decided, until all that follows from it is under way. */
  step: MadeStep | null = null;
  tokens = 0;
  /** Of its data, the rows of the micro-batch that has begun last. */
  latestRows: readonly number[] = [];
  /** Seconds in earlier runs, and the time from which this run counts. */
  secondsBefore = 0;
  since = now();
  steppedAt = now();
  savedAt = now();
  saving = false;
  /** Resolves when the save under way, or the last one, is over, whether it succeeded or not. */
  saved: Promise<void> = Promise.resolve();
  firstLoss: number | null = null;
  lastLoss: number | null = null;
  before: Evaluation | null = null;
  best: Progress["best"] = null;
  /** Log-probabilities of its rows under its objective's reference; computed at its first admission. */
  references: References | null = null;
  latest: Evaluation | null = null;
  /** Tokens per second, smoothed; null before its first step. */
  rate: number | null = null;
  /** Of an adapter that answers itself: the answers that it learns from, and what ends their making while that is under way. */
  rollouts: Rollouts | null = null;
  sampling: AbortController | null = null;
  /** Copies that are to continue from it under other names. */
  readonly forks: Fork[] = [];

  /**
   * `arrived`: its rank among the adapters by when they came. `result`: how it ended, an earlier run's too; null while it is to
   * be trained. `savedSteps`: steps that it had made when it was saved, where it has not been on the stages since.
   */
  constructor(
    readonly plan: AdapterPlan,
    public data: AdapterData,
    readonly made: Progress["made"],
    readonly arrived: number,
    public result: AdapterResult | null,
    readonly savedSteps: number,
  ) {
    ({ status: this.status, nextStatus: this.nextStatus, isPaused: this.isPaused } = initialLifecycle(result !== null));
  }
}

/** The one way to change where an adapter stands. Throws what `transition` throws. */
export const apply = (adapter: AdapterState, event: LifecycleEvent): void => {
  Object.assign(adapter, transition(adapter, event));
};

/** Whether steps are due that learn the same answers as the one before: what these were sampled with is gone. */
export const isAmidRollouts = ({ rollouts, begun }: AdapterState): boolean =>
  rollouts !== null && begun > rollouts.from && begun < rollouts.until;

/** Whether its next step learns answers that it has not made. */
export const needsAnswers = ({ plan, rollouts, steps }: AdapterState): boolean =>
  plan.prompts !== null && (rollouts === null || steps !== rollouts.from);

/** Whether no mini-batch or step of it is under way, and no answer, so that it may leave its slot. */
export const isBetweenSteps = (of: AdapterState): boolean =>
  of.begun === of.steps && of.step === null && of.sampling === null && !isAmidRollouts(of);

export const secondsOf = ({ secondsBefore, since }: AdapterState): number => secondsBefore + (now() - since) / 1000;

export const progressOf = (adapter: AdapterState): Progress => ({
  adapter: adapter.plan.name,
  step: adapter.steps,
  tokens: adapter.tokens,
  seconds: secondsOf(adapter),
  firstLoss: adapter.firstLoss,
  lastLoss: adapter.lastLoss,
  before: adapter.before,
  best: adapter.best,
  made: adapter.made,
});

/**
 * The copies that can be made of its present state; marks them as being made. A copy's name stays taken until it has joined.
 */
export function dueForks(adapter: AdapterState): Fork[] {
  const due = adapter.forks.filter(({ after, isMade }) => !isMade && after <= stepsMade(adapter));
  for (const fork of due) fork.isMade = true;
  return due;
}

/** A copy has joined, or was not made. */
export const endFork = ({ forks }: AdapterState, fork: Fork): void => void forks.splice(forks.indexOf(fork), 1);

/** Steps that it has made, whether it is on the stages or not. */
const stepsMade = ({ steps, savedSteps }: AdapterState): number => Math.max(steps, savedSteps);

/** Sets how far an adapter has come. */
export function restore(adapter: AdapterState, progress: Progress): void {
  const { step, tokens, seconds, firstLoss, lastLoss, before, best } = progress;
  Object.assign(adapter, { begun: step, steps: step, tokens, firstLoss, lastLoss, before, best });
  adapter.secondsBefore = seconds;
  adapter.since = now();
}

/** Keys of an adapter that do not change its numbers; its data is compared by content. */
const NEUTRAL_KEYS = ["data", "priority", "eval_every"];

/**
 * All that decides an adapter's numbers: settings (text that can be compared key by key), data (empty where its rows are yet to
 * be read), base model, saved adapters.
 */
export function madeOf(
  { tokensPerMicrobatch, recipe: run }: Plan,
  { recipe }: AdapterPlan,
  data: AdapterData,
  model: string,
): Progress["made"] {
  const { precision } = run.model;
  const base = isQuantised(precision) ? { precision } : {}; // otherwise the files of the base decide
  const rollouts = rolloutsOf(recipe.objective);
  const table = adapterTable(rollouts ? { ...recipe, objective: withoutLimits(rollouts) } : recipe);
  const settings = Object.entries({ ...table, ...base, tokens_per_microbatch: tokensPerMicrobatch });
  const mixed = recipe.mix ? [["data.mix", recipe.mix] as const] : [];
  const deciding = Object.fromEntries([...settings.filter(([key]) => !NEUTRAL_KEYS.includes(key)), ...mixed]);
  const adapters = Object.fromEntries((data.sources ?? []).map((source) => [source.key, source.fingerprint]));
  const named = Object.keys(adapters).length > 0 ? { adapters } : {};
  const digest = isUnread(data.train) ? "" : keptDigestOf([data.train, data.eval]);
  return { settings: JSON.stringify(deciding), data: digest, model, ...named };
}

/** All rows of an adapter that began before they were read. */
export function takeRows(adapter: AdapterState, plan: Plan, data: AdapterData): void {
  adapter.data = data;
  // In place: it is part of what is being saved.
  Object.assign(adapter.made, madeOf(plan, adapter.plan, data, adapter.made.model));
}

/** Whether the evaluation after this step counts for its patience, or for which state is kept as its best. */
export const isCounted = ({ plan: { recipe } }: Pick<AdapterState, "plan">, step: number): boolean =>
  keepsBest(recipe) && recipe.evalEvery !== null && step > 0 && step % recipe.evalEvery === 0;

/** Whether this step is a rung of its sweep. */
export const isRung = ({ plan: { recipe, steps } }: Pick<AdapterState, "plan">, step: number): boolean =>
  recipe.halving !== null && step > 0 && step < steps && step % recipe.halving.rung === 0;

/**
 * Whether it is evaluated after this step: before its first, at every `evalEvery`, and at rungs. Finisher does the last one.
 */
export const isEvaluated = (adapter: Pick<AdapterState, "plan">, step: number): boolean => {
  const { recipe, steps } = adapter.plan;
  return step === 0 || isRung(adapter, step) || (recipe.evalEvery !== null && step < steps && step % recipe.evalEvery === 0);
};

/** Whether the adapter's next step waits for the evaluation after this one. */
export const waitsForEvaluation = (adapter: Pick<AdapterState, "plan">, step: number): boolean =>
  isCounted(adapter, step) ||
  isRung(adapter, step) ||
  (step > 0 && adapter.plan.recipe.metrics !== null && isEvaluated(adapter, step)); // its program reads the adapter as it is
