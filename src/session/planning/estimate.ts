// How long a run will take: from what it reaches in seconds of real steps, from what an earlier run of the model reached on the
// same device, or from the device's peak.

import { textOf } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { walk } from "../../data/walk.ts";
import { measureDevice } from "../../engine/probe.ts";
import { type EvaluationLengths, evaluationsOf, operationsOf } from "../../plan/operations.ts";
import type { Plan } from "../../plan/plan.ts";
import type { RunResult } from "../events/events.ts";
import type { RequestData } from "../preparation/prepare.ts";
import { simulateRun } from "./simulated-run.ts";
import { keepSpeed, knownSpeed, peakKey, runKey } from "./speeds.ts";

/** "measured": by steps of this run; "earlier": by a run of this model; "estimated": from the device's peak. */
export type Basis = "measured" | "earlier" | "estimated";

export type Estimate = {
  readonly basis: Basis;
  /** Of the run from its first step to its last evaluation, without loading the model. */
  readonly seconds: number;
  /** Of these, evaluations. */
  readonly evaluationSeconds: number;
  /** From one adapter's step to the next of any, in the mean. */
  readonly secondsPerStep: number;
  /** Trained tokens a second while the run trains. */
  readonly tokensPerSecond: number;
};

/**
 * Of the peak, what steps reach: measured 0.79 on 2 cores with SmolLM2-135M and 0.75 on an H200 with a 7B model; small batches
 * reach less.
 */
const SHARE = { cpu: 0.7, cuda: 0.6 };
/** Passes by which the idle share of a pipeline's stages is simulated. */
const SIMULATED = 400;

const lengthsOf = (plan: Plan, data: readonly Pick<RequestData, "eval">[]): EvaluationLengths =>
  data.map(({ eval: rows }, i) => {
    const lengths: number[] = [];
    if (evaluationsOf(plan.adapters[i]!) > 0) walk(rows, (_, __, ___, length) => void lengths.push(length));
    return lengths;
  });

/** An estimate for a run that reaches this many operations a second. */
export function estimateAt(plan: Plan, data: readonly Pick<RequestData, "eval">[], flops: number, basis: Basis): Estimate {
  const { training, evaluation } = operationsOf(plan, lengthsOf(plan, data));
  const [trainingSeconds, evaluationSeconds] = [training / flops, evaluation / flops];
  const [steps, tokens] = [sum(plan.adapters.map((of) => of.steps)), sum(plan.adapters.map((of) => of.tokens))];
  return {
    basis,
    seconds: trainingSeconds + evaluationSeconds,
    evaluationSeconds,
    secondsPerStep: trainingSeconds / Math.max(1, steps),
    tokensPerSecond: tokens / trainingSeconds,
  };
}

/** A shorter time says little. */
const LEAST_SECONDS = 5;

/** Keeps what a run has reached, for later plans. */
export function keepRunSpeed(
  plan: Plan,
  data: readonly Pick<RequestData, "eval">[],
  { seconds, tokens }: Pick<RunResult, "seconds" | "tokens">,
): void {
  if (seconds < LEAST_SECONDS || tokens === 0 || data.length !== plan.adapters.length) return;
  if (isSampling(plan)) return; // its time is not that of training alone
  const { training, evaluation } = operationsOf(plan, lengthsOf(plan, data));
  const share = tokens / sum(plan.adapters.map((of) => of.tokens));
  keepSpeed(runKey(plan), (share * (training + evaluation)) / seconds);
}

/** Whether adapters of the plan answer prompts themselves. */
export const isSampling = ({ adapters }: Pick<Plan, "adapters">): boolean => adapters.some(({ prompts }) => prompts !== null);

/** By what is known already; null where nothing is. Opens no device. */
export function knownEstimate(plan: Plan, data: readonly Pick<RequestData, "eval">[]): Estimate | null {
  const earlier = knownSpeed(runKey(plan));
  if (earlier) return estimateAt(plan, data, earlier.flops, "earlier");
  const peak = knownSpeed(peakKey(plan.device));
  return peak && estimateAt(plan, data, reachable(plan, peak.flops), "estimated");
}

/** The same, where nothing is known with a measurement of the device's peak. Throws what opening it fails with. */
export async function estimateRun(plan: Plan, data: readonly Pick<RequestData, "eval">[]): Promise<Estimate> {
  const known = knownEstimate(plan, data);
  if (known) return known;
  const peak = await measureDevice({ ...plan.device, stagesOnHost: 1 });
  keepSpeed(peakKey(plan.device), peak);
  return estimateAt(plan, data, reachable(plan, peak), "estimated");
}

/** Stages on one device share it; those of a pipeline wait for each other. */
function reachable(plan: Plan, peak: number): number {
  const devices = new Set(plan.stages.map(({ device: { host, kind, ordinal } }) => `${host} ${kind} ${ordinal}`));
  const idle = plan.stages.length === 1 ? 0 : simulateRun(plan, SIMULATED).simulation.bubble;
  return SHARE[plan.device.kind] * peak * devices.size * (devices.size === 1 ? 1 : 1 - idle);
}

/** Why there is no estimate, in a few words. */
export const withoutEstimate = (error: unknown): string => `no time is estimated: ${textOf(error)}`;
