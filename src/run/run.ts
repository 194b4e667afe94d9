// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.

import { join } from "node:path";
import { now } from "../base/clock.ts";
import { RunError, textOf } from "../base/errors.ts";
import { maxOf, sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdamStep } from "../bus/messages.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import { type Action, type ShareRef, schedule } from "../schedule/order.ts";
import { inputLength, type MicroBatch, pack, type Tokens } from "../schedule/pack.ts";
import { rateFactor } from "../schedule/rate.ts";
import { type Evaluation, evaluate } from "./evaluate.ts";
import type { AdapterResult, Observer, RunResult } from "./events.ts";
import { exportAdapter, putFactors, readFactors } from "./export.ts";
import { trainingShare } from "./feed.ts";

/** The tokenised rows of an adapter. */
export type AdapterData = { readonly train: readonly Tokens[]; readonly eval: readonly Tokens[] };

/** An adapter while it trains. */
type Live = {
  readonly plan: AdapterPlan;
  readonly data: AdapterData;
  loss: number; // of the mini-batch so far
  stepTokens: number;
  steps: number;
  tokens: number;
  steppedAt: number;
  firstLoss: number | null;
  lastLoss: number | null;
  before: Evaluation | null;
  result: AdapterResult | null;
};

export type RunOptions = {
  readonly plan: Plan;
  readonly data: readonly AdapterData[];
  readonly bus: Bus;
  /** Folder of the run; null saves nothing (benchmarks). */
  readonly output: string | null;
  readonly observer: Observer;
  /** Aborted: the step under way is finished, everything is saved, and the run ends. */
  readonly stop: AbortSignal;
};

export async function run(options: RunOptions): Promise<RunResult> {
  const started = now();
  const { plan, data, stop } = options;
  const live = plan.adapters.map((adapter, i): Live => {
    const fresh = { loss: 0, stepTokens: 0, steps: 0, tokens: 0, firstLoss: null, lastLoss: null, before: null, result: null };
    return { plan: adapter, data: data[i]!, steppedAt: started, ...fresh };
  });
  for (const { plan: adapter } of live)
    if (adapter.recipe.initialAdapter)
      await putFactors(options.bus, adapter.index, readFactors(adapter.recipe.initialAdapter, plan, adapter.index));
  for (const adapter of live) if (!stop.aborted) adapter.before = await evaluateLive(options, adapter);
  for (const adapter of live) adapter.steppedAt = now();

  const works = plan.adapters.map(({ work }) => work);
  const batches = new Map<number, { readonly batch: MicroBatch; readonly shares: readonly ShareRef[] }>();
  for (const action of schedule(
    works,
    { ...plan, rowTile: plan.device.rowTile },
    (adapter) => live[adapter]!.result !== null,
  )) {
    await act(options, live, batches, action, started);
    if (stop.aborted && action.kind !== "forward") break;
  }
  for (const adapter of live) if (!adapter.result) await finish(options, adapter, "stopped", null, started);
  const results = live.map(({ result }) => result!);
  return {
    adapters: results,
    seconds: (now() - started) / 1000,
    tokens: sum(results.map(({ tokens }) => tokens)),
    stopped: stop.aborted,
  };
}

async function act(
  options: RunOptions,
  live: readonly Live[],
  batches: Map<number, { readonly batch: MicroBatch; readonly shares: readonly ShareRef[] }>,
  action: Action,
  started: number,
): Promise<void> {
  const { plan, bus } = options;
  const stages = Array.from({ length: bus.stages }, (_, stage) => stage);
  switch (action.kind) {
    case "forward": {
      const shares = action.shares.map((ref) => trainingShare(live[ref.adapter]!.plan, live[ref.adapter]!.data.train, ref));
      const batch = pack(shares, plan.adapters.length, plan.device.rowTile);
      batches.set(action.pass, { batch, shares: action.shares });
      await Promise.all(stages.map((stage) => bus.request(stage, { type: "forward", pass: action.pass, batch })));
      break;
    }
    case "backward": {
      const replies = await Promise.all(stages.map((stage) => bus.request(stage, { type: "backward", pass: action.pass })));
      const { batch, shares } = batches.get(action.pass)!;
      batches.delete(action.pass);
      for (const [i, { adapter, firstTarget, targets }] of batch.sequences.entries())
        if (targets > 0) live[adapter]!.loss += replies.at(-1)![i]!.loss * batch.weights[firstTarget]!;
      for (const { adapter, rows } of shares)
        live[adapter]!.stepTokens += sum(rows.map((row) => inputLength(live[adapter]!.data.train[row]!)));
      break;
    }
    case "step":
      await stepAdapters(options, live, action.steps, started);
      break;
    default:
      action satisfies never;
  }
}

async function stepAdapters(
  options: RunOptions,
  live: readonly Live[],
  steps: readonly { readonly adapter: number; readonly step: number }[],
  started: number,
): Promise<void> {
  const { bus, observer, stop } = options;
  const stages = Array.from({ length: bus.stages }, (_, stage) => stage);
  const squares = await Promise.all(stages.map((stage) => bus.request(stage, { type: "squares" })));
  const made: { readonly adam: AdamStep; readonly gradNorm: number }[] = [];
  for (const { adapter, step } of steps) {
    const { plan, loss } = live[adapter]!;
    const { optimizer } = plan.recipe;
    const gradNorm = gradNormOf(squares.map((of) => of[adapter]!));
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      const message = `step ${step + 1}: the loss is ${loss} and the gradient norm ${gradNorm}`;
      await finish(options, live[adapter]!, "failed", `${message}; lower the learning rate or set max_grad_norm`, started);
      continue;
    }
    const { beta1, beta2, eps, weightDecay } = optimizer;
    const learningRate = optimizer.learningRate * rateFactor(plan.recipe.schedule, step, plan.steps);
    const coefficient = clipCoefficient(gradNorm, optimizer.maxGradNorm);
    made.push({ adam: { adapter, t: step + 1, learningRate, beta1, beta2, eps, weightDecay, coefficient }, gradNorm });
  }
  const adams = made.map(({ adam }) => adam);
  await Promise.all(stages.map((stage) => bus.request(stage, { type: "step", steps: adams })));

  for (const { adam, gradNorm } of made) {
    const adapter = live[adam.adapter]!;
    const time = now();
    const { loss, stepTokens: tokens } = adapter;
    adapter.steps = adam.t;
    adapter.tokens += tokens;
    adapter.firstLoss ??= loss;
    adapter.lastLoss = loss;
    observer.stepped({
      adapter: adam.adapter,
      step: adam.t,
      steps: adapter.plan.steps,
      epoch: Math.floor((adam.t - 1) / adapter.plan.stepsPerEpoch) + 1,
      loss,
      learningRate: adam.learningRate,
      gradNorm,
      tokens,
      tokensPerSecond: (1000 * tokens) / Math.max(1e-3, time - adapter.steppedAt),
    });
    Object.assign(adapter, { loss: 0, stepTokens: 0, steppedAt: time });
  }
  for (const { adam } of made) {
    const adapter = live[adam.adapter]!;
    const { evalEvery } = adapter.plan.recipe;
    if (adapter.steps === adapter.plan.steps) await finish(options, adapter, "done", null, started);
    else if (evalEvery && adapter.steps % evalEvery === 0 && !stop.aborted) await evaluateLive(options, adapter);
  }
}

/** Evaluates on the held-out rows, if there are any, and tells. */
async function evaluateLive({ plan, bus, observer }: RunOptions, adapter: Live): Promise<Evaluation | null> {
  if (adapter.data.eval.length === 0) return null;
  const found = await evaluate(bus, plan, adapter.plan.index, adapter.data.eval);
  observer.evaluated({ ...found, adapter: adapter.plan.index, step: adapter.steps });
  return found;
}

/** Ends an adapter: last evaluation, export, result. A failed one is not saved: its numbers are not to be used. */
async function finish(
  options: RunOptions,
  adapter: Live,
  status: AdapterResult["status"],
  message: string | null,
  started: number,
): Promise<void> {
  const { plan, bus, observer, output, stop } = options;
  const { name, index } = adapter.plan;
  let after: Evaluation | null = null;
  let folder: string | null = null;
  let outcome = { status, message };
  if (status !== "failed" && adapter.steps > 0 && output !== null) {
    if (!stop.aborted) after = await evaluateLive(options, adapter);
    folder = join(output, name);
    try {
      await exportAdapter(bus, plan, index, folder, adapter.data.eval.length > 0 ? adapter.data.eval : adapter.data.train);
      observer.saved({ adapter: index, step: adapter.steps, folder });
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      outcome = { status: "failed", message: textOf(error) }; // the others go on
    }
  }
  if (outcome.message) observer.failed(index, outcome.message);
  adapter.result = {
    name,
    ...outcome,
    steps: adapter.steps,
    tokens: adapter.tokens,
    seconds: (now() - started) / 1000,
    before: adapter.before,
    after,
    firstLoss: adapter.firstLoss,
    lastLoss: adapter.lastLoss,
    folder,
  };
}

/** Steps of the adapter that has most: the run's length. */
export const longestSteps = (plan: Plan): number => maxOf(plan.adapters.map(({ steps }) => steps));
