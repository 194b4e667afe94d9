// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.
//
// More adapters than there are slots wait for one; who has a slot trains (roster.ts). Nothing here makes a stage wait but what decides its
// next action: adapters come and go, are evaluated, kept and exported beside the training of the others.

import { now } from "../base/clock.ts";
import { textOf } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { PackedBatch } from "../schedule/lists.ts";
import { inputLength, pack } from "../schedule/pack.ts";
import type { SegmentRef } from "../schedule/segments.ts";
import { updateBest } from "../schedule/sweeps.ts";
import { actionsOf } from "./actions.ts";
import {
  type AdapterData,
  type AdapterState,
  dueForks,
  endFork,
  type Fork,
  isCounted,
  isEvaluated,
  isRung,
  madeOf,
  newAdapterState,
  progressOf,
  waitsForEvaluation,
} from "./adapter-state.ts";
import { BackgroundTasks } from "./background.ts";
import { trainingSegment } from "./batches.ts";
import { type CheckpointStore, isOwn, memoryStore, type StoredAdapter } from "./checkpoints.ts";
import { Controls } from "./controls.ts";
import { type AdapterResult, adapterRef, type Listener, noticeEvent, type RunResult } from "./events.ts";
import { Executor } from "./executor.ts";
import { readState } from "./export.ts";
import { Finisher } from "./finish.ts";
import { decideRungs } from "./halving.ts";
import { Steps } from "./optimizer-steps.ts";
import { AdapterScheduler } from "./scheduler.ts";

export type { AdapterData } from "./adapter-state.ts";

export type RunOptions = {
  readonly plan: Plan;
  readonly data: readonly AdapterData[];
  readonly bus: Bus;
  /** Folder of the run; null saves nothing (benchmarks). */
  readonly output: string | null;
  /** Where adapters are kept, and how often, in steps of theirs and minutes; left out, only those that make room for others. */
  readonly store?: CheckpointStore;
  readonly saveEvery?: { readonly steps: number | null; readonly minutes: number | null } | null;
  /** The base model's fingerprint: what is kept was made with it. */
  readonly model?: string;
  /** Where the run goes on: adapters that ended before, by name. The others begin as they were kept. */
  readonly resumed?: ReadonlyMap<string, AdapterResult>;
  /** At which step an adapter was kept that has not ended. */
  readonly steps?: ReadonlyMap<string, number>;
  /** Receives all that the run reports. */
  readonly emit: Listener;
  /** Called before an adapter joins a run under way, to write that down; what it throws keeps the adapter out. */
  readonly recordJoin?: (adapter: AdapterPlan) => void;
  /** Aborted, with its reason, when a stage is gone. */
  readonly lost?: AbortSignal | null;
  /** Aborted: mini-batches that were begun are finished, everything is saved, and the run ends. */
  readonly stop: AbortSignal;
  /** Aborted: the same, but adapters are kept as they are, to go on elsewhere. */
  readonly suspend?: AbortSignal;
  /** When all adapters have ended, more may come: the run goes on until it is stopped. */
  readonly keepOpen?: boolean;
};

/**
 * Checkpoints by the clock that may be under way at once: adapters that are due together are kept one after the other, so that the host's
 * memory holds a few of them.
 */
const MOST_SAVES = 4;

/** Trains all adapters of the plan. Throws what a stage failed with; what one adapter fails with ends that adapter alone. */
export const run = (options: RunOptions): Promise<RunResult> => new Training(options).run();

/** A run, from its first pass to its last. */
export class Training {
  /** What it can be told meanwhile. */
  readonly controls: Controls;
  readonly #started = now();
  readonly #executor: Executor;
  readonly #background: BackgroundTasks;
  readonly #scheduler: AdapterScheduler;
  readonly #store: CheckpointStore;
  readonly #finisher: Finisher;
  readonly #steps: Steps;
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
        const { plan: adapter, slot, data, references } = this.#of(ref);
        return trainingSegment(adapter, slot!, data.train, references?.train ?? null, ref);
      });
      return pack(filled, plan.slots, plan.device.rowTile);
    };
    const tokensOf = (ref: SegmentRef) => sum(ref.rows.map((row) => inputLength(this.#of(ref).data.train[row]!)));
    this.#executor = new Executor(bus, batchOf, tokensOf, (adapter) => this.#of({ adapter }).slot!);
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
      arrived: (live, first) => this.#arrived(live, first),
      leaves: (live) => this.#leaves(live),
      failed: (live, message) => this.#end(live, "failed", message),
      left: (live) => this.#forkKept(live),
    });
    this.#steps = new Steps({
      stages: bus.stages,
      executor: this.#executor,
      of: (ref) => this.#of(ref),
      emit,
      failed: (live, message) => this.#end(live, "failed", message),
      decided: () => this.#settle(),
      made: (live) => this.#afterStep(live),
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
      hasFreeSlot: () => this.#scheduler.hasFreeSlot,
      isOver: () => this.#isOver,
      enter: (adapter, data) => this.#joinAnew(adapter, data),
      leave: (live, nextStatus) => this.#scheduler.leave(live, nextStatus),
      end: (live) => this.#end(live, "stopped"),
      fork: (live) => this.#forkKept(live),
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
    const live = newAdapterState(adapter, data, madeOf(plan, adapter, data, model), this.#scheduler.all.length);
    live.result = resumed?.get(adapter.name) ?? null;
    live.savedSteps = steps?.get(adapter.name) ?? 0;
    if (live.result) live.status = "ended";
    this.#scheduler.all.push(live);
  }

  /** An adapter comes while the run goes on. */
  #join(late: AdapterPlan, data: AdapterData): void {
    const { adapters } = this.options.plan;
    const adapter = { ...late, index: adapters.length };
    this.options.recordJoin?.(adapter);
    this.options.emit({ type: "joined", ...adapterRef(adapter), steps: adapter.steps, tokens: adapter.tokens });
    adapters.push(adapter);
    this.#enter(adapter, data);
  }

  /** The same of one that begins: what was kept under its name is of another. */
  #joinAnew(adapter: AdapterPlan, data: AdapterData): void {
    this.#store.remove(adapter);
    this.#join(adapter, data);
  }

  async run(): Promise<RunResult> {
    const { lost, stop } = this.options;
    const gone = () => {
      this.#executor.fail(lost!.reason);
      this.#background.wake();
    };
    const woken = () => this.#background.wake();
    lost?.addEventListener("abort", gone);
    const ends = [stop, this.#suspend];
    for (const signal of ends) signal.addEventListener("abort", woken);
    try {
      return await this.#train();
    } finally {
      lost?.removeEventListener("abort", gone);
      for (const signal of ends) signal.removeEventListener("abort", woken);
    }
  }

  async #train(): Promise<RunResult> {
    const { plan, stop, keepOpen = false } = this.options;
    const { all, joining } = this.#scheduler;
    this.#settle();
    // Those that begin, begin together: what the first passes hold shall not depend on how fast files are read.
    await this.#until(() => !all.some(({ status }) => status === "joining"));
    const over = () => stop.aborted || this.#suspend.aborted;
    const left = (adapter: number): boolean => over() || all[adapter]!.status !== "active";
    const allEnded = () => !keepOpen && all.every(({ status }) => status === "ended");
    for (;;) {
      for (const { stage, action } of actionsOf(plan, joining, left, this.#passes))
        if (action.kind === "step") await this.#steps.step(stage, action.steps);
        else {
          if (stage === 0 && action.kind === "forward") this.#begin(action.pass);
          await this.#executor[action.kind](stage, action.pass);
        }
      await this.#executor.drain();
      if (allEnded()) await this.#until(() => this.#background.idle); // while results are saved others may come
      if (over() || allEnded()) break;
      await this.#until(() => joining.length > 0 || over() || allEnded());
    }
    this.#isOver = true;
    await this.#until(() => this.#background.idle); // who is on its way in or out
    const interrupted = stop.aborted ? all.filter(({ status }) => status !== "ended") : [];
    for (const live of interrupted) this.#end(live, "stopped");
    if (!stop.aborted) for (const live of all) if (live.slot !== null) this.#scheduler.evict(live);
    await this.#until(() => this.#background.idle);
    const results = all.flatMap(({ result }) => result ?? []);
    return {
      adapters: results,
      seconds: (now() - this.#started) / 1000,
      tokens: this.#steps.tokens,
      stopped: interrupted.length > 0,
      suspended: this.#suspend.aborted && !stop.aborted,
    };
  }

  /** Waits for what goes on beside; throws what went wrong. */
  #until(condition: () => boolean): Promise<void> {
    return this.#background.until(condition, () => this.#executor.drain());
  }

  #settle(): void {
    for (const { live, dropped } of decideRungs(this.#scheduler.all))
      if (dropped === null) live.status = live.nextStatus === "paused" ? "paused" : "waiting";
      else this.#end(live, "dropped", dropped);
    this.#scheduler.settle();
  }

  #begin({ id, segments }: PackedBatch): void {
    this.#passes = id + 1;
    for (const segment of segments) if (segment.firstRow === 0) this.#of(segment).begun = segment.step + 1;
  }

  /** An adapter has its slot: it is evaluated where it has not been, and goes on. */
  async #arrived(live: AdapterState, first: boolean): Promise<void> {
    if (live.steps >= live.plan.steps) return this.#end(live, "done"); // it was kept when all was made
    if (first && !this.options.stop.aborted && isEvaluated(live, live.steps)) {
      if (waitsForEvaluation(live, live.steps)) return this.#hold(live);
      const found = await this.#finisher.evaluation(live).result;
      if (live.steps === 0) live.before = found;
    }
    this.#scheduler.join(live);
  }

  /** All stages have been told of the step, and of nothing of the adapter's beyond: what is asked of them now is as it is after it. */
  async #afterStep(live: AdapterState): Promise<void> {
    for (const fork of dueForks(live)) this.#background.start(this.#fork(live, fork));
    if (live.steps === live.plan.steps) return this.#end(live, "done");
    if (this.#isDue(live)) this.#background.start(this.#scheduler.keep(live));
    if (live.status === "held") return this.#background.start(this.#hold(live));
    if (isEvaluated(live, live.steps) && !this.options.stop.aborted) {
      const { sent, result } = this.#finisher.evaluation(live);
      await sent;
      this.#background.start(result);
    }
    if (live.status === "leaving" && live.begun === live.steps) this.#leaves(live);
  }

  #leaves(live: AdapterState): void {
    if (live.nextStatus === "ended") this.#end(live, "stopped");
    else this.#scheduler.evict(live);
  }

  /** A copy begins as the adapter is now: kept under the copy's name, it comes as any other that was kept. */
  async #fork(live: AdapterState, fork: Fork, kept?: StoredAdapter): Promise<void> {
    const { plan, bus, model = "" } = this.options;
    const { plan: copy, data } = fork;
    const made = madeOf(plan, copy, data, model);
    const progress = { ...(kept?.progress ?? progressOf(live)), adapter: copy.name, made, best: null };
    try {
      const blocks = kept?.blocks ?? (await readState(bus, live.slot!));
      this.#store.remove(copy);
      await this.#store.save(plan, copy, { progress, blocks });
      this.#join(copy, data);
      endFork(live, fork);
      this.#settle();
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#unmade(live, fork, textOf(error));
    }
  }

  /** The same where the adapter is on no stage; one that has made no step is begun anew. */
  #forkKept(live: AdapterState): void {
    for (const fork of dueForks(live)) {
      const kept = this.#store.load(this.options.plan, live.plan, (text) => this.#notice(live, text));
      if (kept) this.#background.start(this.#fork(live, fork, kept));
      else if (fork.after === 0) {
        this.#joinAnew(fork.plan, fork.data);
        endFork(live, fork);
      } else this.#unmade(live, fork, "it was not kept");
    }
  }

  #unmade(live: AdapterState, fork: Fork, why: string): void {
    endFork(live, fork);
    this.#notice(live, `the copy ${fork.plan.name} was not made: ${why}`);
  }

  #notice({ plan }: AdapterState, text: string): void {
    this.options.emit(noticeEvent(plan, text));
  }

  #isDue({ steps, saving, savedAt }: AdapterState): boolean {
    const { saveEvery } = this.options;
    if (!saveEvery || saving) return false;
    if (saveEvery.steps !== null && steps % saveEvery.steps === 0) return true;
    if (saveEvery.minutes === null || now() - savedAt < 60_000 * saveEvery.minutes) return false;
    return this.#scheduler.all.filter((live) => live.saving).length < MOST_SAVES; // else at a later step
  }

  /** An evaluation decides whether the adapter goes on: until then it makes no step. */
  async #hold(live: AdapterState): Promise<void> {
    const { patience, minDelta } = live.plan.recipe;
    live.status = "held";
    const { loss } = (await this.#finisher.evaluation(live).result)!;
    if (isCounted(live, live.steps)) {
      live.best = updateBest(live.best, loss, live.steps, minDelta);
      if (live.best.step === live.steps) await this.#keepBest(live);
      if (live.best.since >= patience!) return this.#end(live, "early", `no better than at step ${live.best.step} since`);
    }
    if (isRung(live, live.steps) && live.nextStatus === "waiting") live.nextStatus = "rung";
    this.#scheduler.join(live);
  }

  async #keepBest(live: AdapterState): Promise<void> {
    const { plan, bus } = this.options;
    try {
      const blocks = await readState(bus, live.slot!);
      await this.#store.save(plan, live.plan, { progress: progressOf(live), blocks }, "best");
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#notice(live, `step ${live.steps}, its best, was not kept: ${textOf(error)}`);
    }
  }

  /** Ends an adapter: from now on it makes no step. Its last evaluation and its export go on beside the training of the others. */
  #end(live: AdapterState, status: AdapterResult["status"], message: string | null = null): void {
    live.status = "ended";
    for (const fork of live.forks.filter(({ isMade }) => !isMade)) this.#unmade(live, fork, `its last step is ${live.steps}`);
    this.#background.start(this.#finisher.finish(live, status, message));
  }
}
