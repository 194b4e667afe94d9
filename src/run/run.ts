// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.
//
// Nothing here makes a stage wait but what decides its next action. Evaluations and exports go on beside the training of the others.

import { join } from "node:path";
import { now } from "../base/clock.ts";
import { RunError, textOf } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdamStep } from "../bus/messages.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import type { Pass, StepRef } from "../schedule/lists.ts";
import { inputLength, pack, type Tokens } from "../schedule/pack.ts";
import { rateFactor } from "../schedule/rate.ts";
import { actionsOf } from "./actions.ts";
import { type Evaluation, evaluate } from "./evaluate.ts";
import type { AdapterResult, Observer, RunResult } from "./events.ts";
import { Executor, tokensIn } from "./executor.ts";
import { exportAdapter, putFactors, readFactors } from "./export.ts";
import { trainingShare } from "./feed.ts";

/** The tokenised rows of an adapter. */
export type AdapterData = { readonly train: readonly Tokens[]; readonly eval: readonly Tokens[] };

/** An adapter while it trains. */
type Live = {
  readonly plan: AdapterPlan;
  readonly data: AdapterData;
  /** The step under way, from when it is decided. */
  made: MadeStep | null;
  steps: number;
  tokens: number;
  steppedAt: number;
  firstLoss: number | null;
  lastLoss: number | null;
  before: Evaluation | null;
  /** It makes no further step. */
  ended: boolean;
  result: AdapterResult | null;
};

type MadeStep = {
  readonly step: number; // from 1
  readonly loss: number;
  readonly tokens: number;
  readonly gradNorm: number;
  readonly learningRate: number;
};

export type RunOptions = {
  readonly plan: Plan;
  readonly data: readonly AdapterData[];
  readonly bus: Bus;
  /** Folder of the run; null saves nothing (benchmarks). */
  readonly output: string | null;
  readonly observer: Observer;
  /** Aborted: mini-batches that were begun are finished, everything is saved, and the run ends. */
  readonly stop: AbortSignal;
};

/** Trains all adapters of the plan. Throws what a stage failed with; what one adapter fails with ends that adapter alone. */
export const run = (options: RunOptions): Promise<RunResult> => new Training(options).run();

class Training {
  readonly #started = now();
  readonly #live: readonly Live[];
  readonly #executor: Executor;
  /** Of steps that the first stage has been told and the last has not: null for an adapter that failed. */
  readonly #made = new Map<string, AdamStep | null>();
  readonly #beside = new Set<Promise<void>>();

  constructor(private readonly options: RunOptions) {
    const { plan, data, bus } = options;
    this.#live = plan.adapters.map((adapter, i): Live => {
      const fresh = { made: null, steps: 0, tokens: 0, firstLoss: null, lastLoss: null, before: null };
      return { plan: adapter, data: data[i]!, steppedAt: this.#started, ...fresh, ended: false, result: null };
    });
    const batchOf = ({ shares }: Pass) => {
      const filled = shares.map((ref) => trainingShare(plan.adapters[ref.adapter]!, data[ref.adapter]!.train, ref));
      return pack(filled, plan.adapters.length, plan.device.rowTile);
    };
    const lengthOf = (adapter: number) => (row: number) => inputLength(data[adapter]!.train[row]!);
    this.#executor = new Executor(bus, batchOf, (pass, adapter) => tokensIn(pass, adapter, lengthOf(adapter)));
  }

  async run(): Promise<RunResult> {
    const { plan, bus, stop } = this.options;
    for (const { index, recipe } of plan.adapters)
      if (recipe.initialAdapter) await putFactors(bus, index, readFactors(recipe.initialAdapter, plan, index));
    for (const adapter of this.#live) if (!stop.aborted) adapter.before = await this.#evaluate(adapter);
    for (const adapter of this.#live) adapter.steppedAt = now();

    const ended = (adapter: number): boolean => stop.aborted || this.#live[adapter]!.ended;
    for (const { stage, action } of actionsOf(plan, ended))
      if (action.kind === "step") await this.#step(stage, action.steps);
      else await this.#executor[action.kind](stage, action.pass);
    await this.#executor.drain();
    for (const adapter of this.#live) if (!adapter.ended) this.#end(adapter, "stopped");
    while (this.#beside.size > 0) await Promise.race(this.#beside);
    await this.#executor.drain(); // throws what went wrong beside
    const results = this.#live.map(({ result }) => result!);
    return {
      adapters: results,
      seconds: (now() - this.#started) / 1000,
      tokens: sum(results.map(({ tokens }) => tokens)),
      stopped: stop.aborted,
    };
  }

  /** One stage's part of these steps: decided when the first stage is told, reported when the last has been. */
  async #step(stage: number, refs: readonly StepRef[]): Promise<void> {
    const keyOf = ({ adapter, step }: StepRef) => `${adapter}.${step}`;
    for (const ref of refs) if (!this.#made.has(keyOf(ref))) this.#made.set(keyOf(ref), await this.#decide(ref));
    const steps = refs.flatMap((ref) => this.#made.get(keyOf(ref)) ?? []);
    if (steps.length > 0) await this.#executor.step(stage, steps);
    if (stage < this.options.bus.stages - 1) return;
    for (const ref of refs) this.#made.delete(keyOf(ref));
    for (const { adapter } of steps) this.#report(this.#live[adapter]!);
    for (const { adapter } of steps) await this.#afterStep(this.#live[adapter]!);
  }

  /** An adapter's step from its mini-batch's loss and gradient norm; null where they are no numbers, which ends the adapter. */
  async #decide(ref: StepRef): Promise<AdamStep | null> {
    const adapter = this.#live[ref.adapter]!;
    const { recipe, steps } = adapter.plan;
    const { loss, tokens, squares } = await this.#executor.result(ref);
    if (adapter.ended) return null;
    const gradNorm = gradNormOf(squares);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      const message = `step ${ref.step + 1}: the loss is ${loss} and the gradient norm ${gradNorm}`;
      this.#end(adapter, "failed", `${message}; lower the learning rate or set max_grad_norm`);
      return null;
    }
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = recipe.optimizer;
    const learningRate = recipe.optimizer.learningRate * rateFactor(recipe.schedule, ref.step, steps);
    const coefficient = clipCoefficient(gradNorm, maxGradNorm);
    adapter.made = { loss, tokens, gradNorm, learningRate, step: ref.step + 1 };
    return { adapter: ref.adapter, t: ref.step + 1, learningRate, beta1, beta2, eps, weightDecay, coefficient };
  }

  /** Counts and tells of the step that an adapter has made. */
  #report(adapter: Live): void {
    const { plan, made } = adapter;
    const { loss, tokens, gradNorm, learningRate, step } = made!;
    const time = now();
    adapter.steps = step;
    adapter.tokens += tokens;
    adapter.firstLoss ??= loss;
    adapter.lastLoss = loss;
    this.options.observer.stepped({
      adapter: plan.index,
      step,
      steps: plan.steps,
      epoch: Math.floor((step - 1) / plan.stepsPerEpoch) + 1,
      loss,
      learningRate,
      gradNorm,
      tokens,
      tokensPerSecond: (1000 * tokens) / Math.max(1e-3, time - adapter.steppedAt),
    });
    adapter.steppedAt = time;
  }

  async #afterStep(adapter: Live): Promise<void> {
    const { evalEvery } = adapter.plan.recipe;
    if (adapter.steps === adapter.plan.steps) this.#end(adapter, "done");
    else if (evalEvery && adapter.steps % evalEvery === 0 && !this.options.stop.aborted) {
      const { sent, result } = this.#evaluation(adapter);
      await sent;
      this.#goOnBeside(result);
    }
  }

  /** What need not be waited for; a failure ends the run. */
  #goOnBeside(work: Promise<unknown>): void {
    const task: Promise<void> = work.then(
      () => void this.#beside.delete(task),
      (error) => {
        this.#beside.delete(task);
        this.#executor.fail(error);
      },
    );
    this.#beside.add(task);
  }

  /** Evaluates on the held-out rows, if there are any, and tells. */
  async #evaluate(adapter: Live): Promise<Evaluation | null> {
    return this.#evaluation(adapter).result;
  }

  #evaluation(adapter: Live): { readonly sent: Promise<void>; readonly result: Promise<Evaluation | null> } {
    const { plan, bus, observer } = this.options;
    const { index } = adapter.plan;
    const held = adapter.data.eval;
    if (held.length === 0) return { sent: Promise.resolve(), result: Promise.resolve(null) };
    const { steps } = adapter;
    const { sent, result } = evaluate(bus, plan, index, held);
    const told = result.then((found) => {
      observer.evaluated({ ...found, adapter: index, step: steps });
      return found;
    });
    told.catch(() => undefined); // it may fail before anybody waits for it
    return { sent, result: told };
  }

  /** Ends an adapter: from now on it makes no step. Its last evaluation and its export go on beside the training of the others. */
  #end(adapter: Live, status: AdapterResult["status"], message: string | null = null): void {
    adapter.ended = true;
    this.#goOnBeside(this.#finish(adapter, status, message));
  }

  /** Last evaluation, export, result. An adapter that failed is not saved: its numbers are not to be used. */
  async #finish(adapter: Live, status: AdapterResult["status"], message: string | null): Promise<void> {
    const { plan, bus, observer, output, stop } = this.options;
    const { data, steps, tokens, firstLoss, lastLoss, before } = adapter;
    const { name, index } = adapter.plan;
    let after: Evaluation | null = null;
    let folder: string | null = null;
    let outcome = { status, message };
    if (status !== "failed" && steps > 0 && output !== null) {
      if (!stop.aborted) after = await this.#evaluate(adapter);
      folder = join(output, name);
      try {
        await exportAdapter(bus, plan, index, folder, data.eval.length > 0 ? data.eval : data.train);
        observer.saved({ adapter: index, step: steps, folder });
      } catch (error) {
        if (!(error instanceof RunError && isOwn(error))) throw error;
        outcome = { status: "failed", message: textOf(error) }; // the others go on
      }
    }
    if (outcome.message) observer.failed(index, outcome.message);
    const seconds = (now() - this.#started) / 1000;
    adapter.result = { name, ...outcome, steps, tokens, seconds, before, after, firstLoss, lastLoss, folder };
  }
}

/** Whether it is the adapter's alone: its file, not a stage. */
const isOwn = ({ code }: RunError): boolean => code.startsWith("files.") || code.startsWith("export.");
