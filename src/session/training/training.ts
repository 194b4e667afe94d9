// The coordinator of a run: follows the schedule, sends requests to the stages and collects their replies. Opens no device.
//
// Where there are fewer slots than adapters, the others wait (scheduler.ts). A stage waits only for what decides its next
// action: adapters are admitted, evaluated, saved and exported while the others train.

import { onAbort } from "../../base/abort.ts";
import { now } from "../../base/clock.ts";
import { textOf } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import type { Bus } from "../../bus/bus.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import type { PackedBatch } from "../../schedule/lists.ts";
import { inputLength, pack } from "../../schedule/pack.ts";
import type { SegmentRef } from "../../schedule/segments.ts";
import { updateBest, whyEarly } from "../../schedule/sweeps.ts";
import { Controls } from "../control/controls.ts";
import { trainingSegment } from "../evaluation/batches.ts";
import { nextToken } from "../evaluation/next-token.ts";
import { scoreOf } from "../evaluation/own-metrics.ts";
import { type AdapterResult, adapterRef, type Listener, noticeEvent, type RunResult } from "../events/events.ts";
import { rolloutSegment } from "../rollouts/rows.ts";
import { RunAnswers } from "../rollouts/run-answers.ts";
import { type RecordAnswers, Sampling } from "../rollouts/sampling.ts";
import {
  type AdapterData,
  AdapterState,
  apply,
  isAmidRollouts,
  isBetweenSteps,
  isCounted,
  isEvaluated,
  isRung,
  madeOf,
  needsAnswers,
  waitsForEvaluation,
} from "../scheduling/adapter-state.ts";
import { BackgroundTasks } from "../scheduling/background.ts";
import { Forks } from "../scheduling/forks.ts";
import { decideRungs } from "../scheduling/halving.ts";
import { AdapterScheduler } from "../scheduling/scheduler.ts";
import { type CheckpointStore, isOwn, memoryStore } from "../state/checkpoints.ts";
import type { SpanNames } from "../tracing/span-names.ts";
import { actionsOf } from "./actions.ts";
import { Executor } from "./executor.ts";
import { Finisher } from "./finish.ts";
import { Steps } from "./optimizer-steps.ts";
import { needsSum } from "./shared-rows.ts";

export type { AdapterData } from "../scheduling/adapter-state.ts";

export type RunOptions = {
  readonly plan: Plan;
  readonly data: readonly AdapterData[];
  readonly bus: Bus;
  /** Folder of the run; null saves nothing (benchmarks). */
  readonly output: string | null;
  /** Checkpoints, and how often they are made, in steps and minutes; left out, only adapters that lose their slot are saved. */
  readonly store?: CheckpointStore;
  readonly saveEvery?: { readonly steps: number | null; readonly minutes: number | null } | null;
  /** The base model's fingerprint, for checkpoints. */
  readonly model?: string;
  /** Of a run that is continued: adapters that have ended, by name. The others begin from their checkpoints. */
  readonly resumed?: ReadonlyMap<string, AdapterResult>;
  /** The step of the checkpoint of each adapter that has not ended. */
  readonly steps?: ReadonlyMap<string, number>;
  /** Receives all that the run reports. */
  readonly emit: Listener;
  readonly recordAnswers?: RecordAnswers;
  /** Called before an adapter joins a run under way, to write that down; what it throws keeps the adapter out. */
  readonly recordJoin?: (adapter: AdapterPlan) => void;
  /** Aborted, with its reason, when a stage is gone. */
  readonly lost?: AbortSignal | null;
  /** Aborted: mini-batches under way are finished, everything is saved, and the run ends. */
  readonly stop: AbortSignal;
  /** Aborted: the same, but adapters do not end: they are saved, to continue on other stages. */
  readonly suspend?: AbortSignal;
  /** Learns which adapters the spans of stages are of. */
  readonly spans?: SpanNames;
  /** Resolves when all rows are read, which no adapter ends before; left out: they are. */
  readonly whole?: Promise<void>;
  /** The run waits for more adapters when all have ended, until it is stopped. */
  readonly keepOpen?: boolean;
};

/**
 * Checkpoints by the clock under way at once; others that are due wait for a later step, so that the host's memory holds few.
 */
const MOST_SAVES = 4;

/** Trains all adapters of the plan. Throws what a stage failed with; a fault of one adapter ends that adapter alone. */
export const run = (options: RunOptions): Promise<RunResult> => new Training(options).run();

/** A run on opened stages, from its first packed batch to its last. */
export class Training {
  readonly controls: Controls;
  readonly #started = now();
  readonly #executor: Executor;
  readonly #background: BackgroundTasks;
  readonly #scheduler: AdapterScheduler;
  readonly #store: CheckpointStore;
  readonly #finisher: Finisher;
  readonly #steps: Steps;
  readonly #sampling: Sampling;
  readonly #forks: Forks;
  readonly #suspend: AbortSignal;
  #passes = 0;
  /** Nothing joins any more. */
  #isOver = false;

  constructor(private readonly options: RunOptions) {
    const { plan, bus, store, emit, stop } = options;
    this.#store = store ?? memoryStore();
    this.#suspend = options.suspend ?? new AbortController().signal;
    const batchOf = ({ segments }: PackedBatch) => {
      const filled = segments.map((ref) => {
        const { plan: of, slot, data, references, rollouts } = this.#of(ref);
        if (rollouts) return rolloutSegment(of, slot!, rollouts, ref);
        return trainingSegment(of, slot!, data.train, references?.train ?? null, ref);
      });
      return pack(filled, plan.slots, plan.device.rowTile);
    };
    const tokensOf = (ref: SegmentRef) => {
      const { rollouts, data } = this.#of(ref);
      return sum(ref.rows.map((row) => inputLength((rollouts?.rows ?? data.train)[row]!)));
    };
    const slotOf = (adapter: number) => this.#of({ adapter }).slot!;
    const sums = (adapter: number) => needsSum(bus, plan.spec, this.#of({ adapter }).plan);
    this.#executor = new Executor(bus, batchOf, tokensOf, slotOf, sums, plan.spec.experts !== null);
    this.#background = new BackgroundTasks(
      (error) => this.#executor.fail(error),
      () => this.#settle(),
    );
    this.#scheduler = new AdapterScheduler({
      plan,
      bus,
      store: this.#store,
      emit,
      background: this.#background,
      stop,
      suspend: this.#suspend,
      msPerStep: () => this.#steps.msPerStep,
      placed: (adapter, slot) => options.spans?.hold(slot, adapter.plan.name),
      arrived: (adapter, first) => this.#arrived(adapter, first),
      leaves: (adapter) => this.#leaves(adapter),
      failed: (adapter, message) => this.#end(adapter, "failed", message),
      answers: (adapter) => this.#sampling.start(adapter),
      left: (adapter) => this.#forks.makeSaved(adapter),
    });
    this.#sampling = new Sampling({
      open: () => new RunAnswers(bus, plan, (of, text) => emit(noticeEvent(of, text))),
      ...{ scheduler: this.#scheduler, background: this.#background },
      over: AbortSignal.any([stop, this.#suspend]),
      record: options.recordAnswers ?? (() => undefined),
      leaves: (adapter) => this.#leaves(adapter),
      stopped: (adapter, message) => {
        this.#notice(adapter, message);
        this.#end(adapter, "stopped", message);
      },
    });
    this.#steps = new Steps({
      stages: bus.stages,
      executor: this.#executor,
      of: (ref) => this.#of(ref),
      emit,
      failed: (adapter, message) => this.#end(adapter, "failed", message),
      decided: () => this.#settle(),
      made: (adapter) => this.#afterStep(adapter),
    });
    this.#forks = new Forks({
      ...{ plan, bus, model: options.model ?? "", store: this.#store, background: this.#background },
      notice: (adapter, text) => this.#notice(adapter, text),
      join: (copy, data) => this.#join(copy, data),
      joinAnew: (copy, data) => this.#joinAnew(copy, data),
      settle: () => this.#settle(),
    });
    const saveStopped = store !== undefined;
    this.#finisher = new Finisher({
      ...options,
      store: this.#store,
      saveStopped,
      emit,
      scheduler: this.#scheduler,
    });
    for (const [i, adapter] of plan.adapters.entries()) this.#enter(adapter, options.data[i]!);
    this.controls = new Controls({
      all: this.#scheduler.all,
      hasRoomFor: (late) => this.#scheduler.hasRoomFor(late),
      isOver: () => this.#isOver,
      enter: (plan, data) => this.#joinAnew(plan, data),
      leave: (adapter, event) => this.#scheduler.leave(adapter, event),
      end: (adapter) => this.#end(adapter, "stopped"),
      fork: (adapter) => this.#forks.makeSaved(adapter),
      nextToken: (slot, ids) => nextToken(bus, plan, slot, ids),
      settle: () => {
        this.#settle();
        this.#background.wake();
      },
    });
  }

  #of({ adapter }: { readonly adapter: number }): AdapterState {
    return this.#scheduler.all[adapter]!;
  }

  #enter(adapter: AdapterPlan, data: AdapterData): void {
    const { plan, model = "", resumed, steps } = this.options;
    const { all } = this.#scheduler;
    const made = madeOf(plan, adapter, data, model);
    const { name } = adapter;
    all.push(new AdapterState(adapter, data, made, all.length, resumed?.get(name) ?? null, steps?.get(name) ?? 0));
  }

  /** Adds an adapter to the run under way. */
  #join(late: AdapterPlan, data: AdapterData): void {
    const { adapters } = this.options.plan;
    const adapter = { ...late, index: adapters.length };
    this.options.recordJoin?.(adapter);
    this.options.emit({ type: "joined", ...adapterRef(adapter), steps: adapter.steps, tokens: adapter.tokens });
    adapters.push(adapter);
    this.#enter(adapter, data);
  }

  /** The same from its first step: checkpoints under its name are of another. */
  #joinAnew(adapter: AdapterPlan, data: AdapterData): void {
    this.#store.remove(adapter);
    this.#join(adapter, data);
  }

  async run(): Promise<RunResult> {
    const { lost, stop } = this.options;
    const wake = () => this.#background.wake();
    using listeners = new DisposableStack();
    for (const signal of [stop, this.#suspend]) listeners.use(onAbort(signal, wake));
    if (lost) {
      const gone = () => {
        this.#executor.fail(lost.reason);
        wake();
      };
      listeners.use(onAbort(lost, gone));
    }
    await using _ = this.#finisher;
    return await this.#train();
  }

  async #train(): Promise<RunResult> {
    const { plan, stop, keepOpen = false } = this.options;
    const { all, joining } = this.#scheduler;
    this.#settle();
    // Adapters begin together: the first packed batches must not depend on how fast files are read.
    await this.#until(() => !all.some((of) => of.status === "joining" && !this.#scheduler.isQueued(of)));
    const over = () => stop.aborted || this.#suspend.aborted;
    const left = (adapter: number): boolean => {
      const { status } = all[adapter]!;
      return status === "ended" || (!isAmidRollouts(all[adapter]!) && (over() || status !== "active"));
    };
    const allEnded = () => !keepOpen && all.every(({ status }) => status === "ended");
    for (;;) {
      for (const { stage, action } of actionsOf(plan, joining, left, this.#passes))
        if (action.kind === "step") await this.#steps.step(stage, action.steps);
        else {
          if (stage === 0 && action.kind === "forward") this.#begin(action.pass);
          await this.#executor[action.kind](stage, action.pass);
        }
      await this.#executor.drain();
      if (allEnded()) await this.#until(() => this.#background.idle); // more may join while results are saved
      if (over() || allEnded()) break;
      await this.#until(() => joining.length > 0 || over() || allEnded());
    }
    this.#isOver = true;
    this.#scheduler.close();
    const isTraining = ({ status }: AdapterState) => status === "active" || status === "resting";
    if (!stop.aborted) for (const adapter of all) if (isTraining(adapter)) this.#scheduler.leave(adapter, "preempted");
    await this.#until(() => this.#background.idle); // adapters that are joining or leaving
    const interrupted = stop.aborted ? all.filter(({ status }) => status !== "ended") : [];
    for (const adapter of interrupted) this.#end(adapter, "stopped");
    if (!stop.aborted) for (const adapter of all) if (adapter.slot !== null) this.#scheduler.leave(adapter, "preempted");
    await this.#until(() => this.#background.idle);
    const results = all.flatMap(({ result }) => result ?? []);
    return {
      adapters: results,
      seconds: (now() - this.#started) / 1000,
      tokens: this.#steps.tokens,
      stopped: interrupted.length > 0 || this.#finisher.hasKept,
      suspended: this.#suspend.aborted && !stop.aborted,
    };
  }

  /** Waits until the condition holds; throws what a stage or a background task failed with. */
  #until(condition: () => boolean): Promise<void> {
    return this.#background.until(condition, () => this.#executor.drain());
  }

  #settle(): void {
    for (const { adapter, dropped } of decideRungs(this.#scheduler.all))
      if (adapter.status !== "rung")
        continue; // a listener has stopped it
      else if (dropped === null) apply(adapter, "rungPassed");
      else this.#end(adapter, "dropped", dropped);
    this.#scheduler.settle();
  }

  #begin({ id, segments }: PackedBatch): void {
    this.#passes = id + 1;
    this.options.spans?.begin(
      id,
      segments.map((segment) => this.#of(segment).plan.name),
    );
    for (const segment of segments) {
      const adapter = this.#of(segment);
      if (segment.firstRow === 0) adapter.begun = segment.step + 1;
      adapter.latestRows = segment.rows;
    }
  }

  /** An adapter has its slot: it is evaluated if it has not been, and trains. */
  async #arrived(adapter: AdapterState, first: boolean): Promise<void> {
    if (adapter.steps >= adapter.plan.steps) return this.#end(adapter, "done"); // saved after its last step
    if (first && !this.options.stop.aborted && isEvaluated(adapter, adapter.steps)) {
      if (waitsForEvaluation(adapter, adapter.steps)) {
        apply(adapter, "evaluationDue");
        return this.#evaluate(adapter);
      }
      const found = await this.#finisher.evaluation(adapter).result;
      if (adapter.steps === 0) adapter.before = found;
    }
    this.#scheduler.join(adapter, "joined");
  }

  /** Every stage has been sent this step and nothing later for this adapter, so state read now is the state after the step. */
  async #afterStep(adapter: AdapterState): Promise<void> {
    if (!isAmidRollouts(adapter)) this.#forks.make(adapter);
    if (adapter.steps === adapter.plan.steps) return this.#end(adapter, "done");
    if (this.#isDue(adapter)) this.#background.start(this.#scheduler.save(adapter));
    if (adapter.status === "evaluating") this.#background.start(this.#evaluate(adapter));
    else if (isEvaluated(adapter, adapter.steps) && !this.options.stop.aborted) {
      const { sent, result } = this.#finisher.evaluation(adapter);
      await sent;
      this.#background.start(result);
    }
    adapter.step = null;
    if (!isBetweenSteps(adapter)) return;
    // One of them: a request that comes while it is offloaded may have it leave.
    if (adapter.status === "resting") this.#scheduler.rest(adapter);
    else if (adapter.status === "leaving") this.#leaves(adapter);
    else if (adapter.status === "active" && needsAnswers(adapter)) this.#sampling.start(adapter);
  }

  #leaves(adapter: AdapterState): void {
    if (adapter.nextStatus === "ended") this.#end(adapter, "stopped");
    else this.#scheduler.evict(adapter);
  }

  #notice({ plan }: AdapterState, text: string): void {
    this.options.emit(noticeEvent(plan, text));
  }

  #isDue(adapter: AdapterState): boolean {
    const { saveEvery } = this.options;
    const { steps, saving, savedAt } = adapter;
    if (!saveEvery || saving || isAmidRollouts(adapter)) return false;
    if (saveEvery.steps !== null && steps % saveEvery.steps === 0) return true;
    if (saveEvery.minutes === null || now() - savedAt < 60_000 * saveEvery.minutes) return false;
    return this.#scheduler.all.filter((adapter) => adapter.saving).length < MOST_SAVES;
  }

  /** An evaluation decides whether the adapter trains further: until then it makes no step. */
  async #evaluate(adapter: AdapterState): Promise<void> {
    const { patience, minDelta } = adapter.plan.recipe;
    const score = scoreOf(adapter.plan.recipe, (await this.#finisher.evaluation(adapter).result)!);
    if (score !== null && isCounted(adapter, adapter.steps)) {
      adapter.best = updateBest(adapter.best, score, adapter.steps, minDelta);
      if (adapter.best.step === adapter.steps) await this.#saveBest(adapter);
      if (patience !== null && adapter.best.since >= patience)
        return this.#end(adapter, "early", whyEarly(adapter.best, minDelta));
    }
    this.#scheduler.join(adapter, isRung(adapter, adapter.steps) ? "rungReached" : "joined");
  }

  async #saveBest(adapter: AdapterState): Promise<void> {
    try {
      await this.#scheduler.store(adapter, "best");
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#notice(adapter, `step ${adapter.steps}, its best, was not kept: ${textOf(error)}`);
    }
  }

  /** Ends an adapter: it makes no further step. It is evaluated and exported while the others train. */
  #end(adapter: AdapterState, status: AdapterResult["status"], message: string | null = null): void {
    apply(adapter, "ended");
    adapter.sampling?.abort();
    this.#forks.end(adapter);
    this.#background.start(this.#finisher.finish(adapter, status, message));
  }
}
