// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.
//
// More adapters than there are slots wait for one; who has a slot trains (roster.ts). Nothing here makes a stage wait but what decides its
// next action: adapters come and go, are evaluated, kept and exported beside the training of the others.

import { now } from "../base/clock.ts";
import { textOf } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Pass } from "../schedule/lists.ts";
import { inputLength, pack } from "../schedule/pack.ts";
import type { ShareRef } from "../schedule/shares.ts";
import { judge } from "../schedule/sweeps.ts";
import { actionsOf } from "./actions.ts";
import { Beside } from "./beside.ts";
import { Controls } from "./controls.ts";
import { type AdapterResult, type Events, type Observer, type RunResult, together } from "./events.ts";
import { Executor } from "./executor.ts";
import { readState } from "./export.ts";
import { trainingShare } from "./feed.ts";
import { Finisher } from "./finish.ts";
import { isOwn, type Keeper, type Kept, memoryKeeper } from "./keeper.ts";
import {
  type AdapterData,
  dueForks,
  type Fork,
  forkOver,
  freshLive,
  isCounted,
  isEvaluated,
  isHeld,
  isRung,
  type Live,
  madeOf,
  progressOf,
} from "./live.ts";
import { Roster } from "./roster.ts";
import { decideRungs } from "./rungs.ts";
import { Steps } from "./steps.ts";

export type { AdapterData } from "./live.ts";

export type RunOptions = {
  readonly plan: Plan;
  readonly data: readonly AdapterData[];
  readonly bus: Bus;
  /** Folder of the run; null saves nothing (benchmarks). */
  readonly output: string | null;
  /** Where adapters are kept, and how often, in steps of theirs and minutes; left out, only those that make room for others. */
  readonly keeper?: Keeper;
  readonly keepEvery?: { readonly steps: number | null; readonly minutes: number | null } | null;
  /** The base model's fingerprint: what is kept was made with it. */
  readonly model?: string;
  /** Where the run goes on: adapters that ended before, by name. The others begin as they were kept. */
  readonly resumed?: ReadonlyMap<string, AdapterResult>;
  /** At which step an adapter was kept that has not ended. */
  readonly steps?: ReadonlyMap<string, number>;
  readonly observers: readonly Observer[];
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
  readonly #beside: Beside;
  readonly #roster: Roster;
  readonly #keeper: Keeper;
  readonly #tell: Events;
  readonly #finisher: Finisher;
  readonly #steps: Steps;
  readonly #suspend: AbortSignal;
  #passes = 0;
  /** Nothing joins any more. */
  #isOver = false;

  constructor(private readonly options: RunOptions) {
    const { plan, bus, keeper, observers, stop } = options;
    this.#keeper = keeper ?? memoryKeeper();
    this.#suspend = options.suspend ?? new AbortController().signal;
    this.#tell = together(observers);
    const batchOf = ({ shares }: Pass) => {
      const filled = shares.map((ref) => {
        const { plan: adapter, slot, data, references } = this.#of(ref);
        return trainingShare(adapter, slot!, data.train, references?.train ?? null, ref);
      });
      return pack(filled, plan.slots, plan.device.rowTile);
    };
    const tokensOf = (ref: ShareRef) => sum(ref.rows.map((row) => inputLength(this.#of(ref).data.train[row]!)));
    this.#executor = new Executor(bus, batchOf, tokensOf, (adapter) => this.#of({ adapter }).slot!);
    this.#beside = new Beside(
      (error) => this.#executor.fail(error),
      () => this.#settle(),
    );
    this.#roster = new Roster({
      plan,
      bus,
      keeper: this.#keeper,
      tell: this.#tell,
      beside: this.#beside,
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
      tell: this.#tell,
      failed: (live, message) => this.#end(live, "failed", message),
      decided: () => this.#settle(),
      made: (live) => this.#afterStep(live),
    });
    const keepStopped = keeper !== undefined;
    this.#finisher = new Finisher({ ...options, keeper: this.#keeper, keepStopped, tell: this.#tell, roster: this.#roster });
    for (const [i, adapter] of plan.adapters.entries()) this.#enter(adapter, options.data[i]!);
    this.controls = new Controls({
      all: this.#roster.all,
      hasFreeSlot: () => this.#roster.hasFreeSlot,
      isOver: () => this.#isOver,
      enter: (adapter, data) => this.#joinAnew(adapter, data),
      leave: (live, goes) => this.#roster.leave(live, goes),
      end: (live) => this.#end(live, "stopped"),
      fork: (live) => this.#forkKept(live),
      settle: () => {
        this.#settle();
        this.#beside.wake();
      },
    });
  }

  #of({ adapter }: { readonly adapter: number }): Live {
    return this.#roster.all[adapter]!;
  }

  #enter(adapter: AdapterPlan, data: AdapterData): void {
    const { plan, model = "", resumed, steps } = this.options;
    const live = freshLive(adapter, data, madeOf(plan, adapter, data, model), this.#roster.all.length);
    live.result = resumed?.get(adapter.name) ?? null;
    live.keptSteps = steps?.get(adapter.name) ?? 0;
    if (live.result) live.standing = "ended";
    this.#roster.all.push(live);
  }

  /** An adapter comes while the run goes on. */
  #join(late: AdapterPlan, data: AdapterData): void {
    const { adapters } = this.options.plan;
    const adapter = { ...late, index: adapters.length };
    this.#tell.joined(adapter); // it may not be possible to write it down: then it has not come
    adapters.push(adapter);
    this.#enter(adapter, data);
  }

  /** The same of one that begins: what was kept under its name is of another. */
  #joinAnew(adapter: AdapterPlan, data: AdapterData): void {
    this.#keeper.forget(adapter);
    this.#join(adapter, data);
  }

  async run(): Promise<RunResult> {
    const { lost, stop } = this.options;
    const gone = () => {
      this.#executor.fail(lost!.reason);
      this.#beside.wake();
    };
    const woken = () => this.#beside.wake();
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
    const { all, joining } = this.#roster;
    this.#settle();
    // Those that begin, begin together: what the first passes hold shall not depend on how fast files are read.
    await this.#until(() => !all.some(({ standing }) => standing === "joining"));
    const over = () => stop.aborted || this.#suspend.aborted;
    const left = (adapter: number): boolean => over() || all[adapter]!.standing !== "active";
    const allEnded = () => !keepOpen && all.every(({ standing }) => standing === "ended");
    for (;;) {
      for (const { stage, action } of actionsOf(plan, joining, left, this.#passes))
        if (action.kind === "step") await this.#steps.step(stage, action.steps);
        else {
          if (stage === 0 && action.kind === "forward") this.#begin(action.pass);
          await this.#executor[action.kind](stage, action.pass);
        }
      await this.#executor.drain();
      if (allEnded()) await this.#until(() => this.#beside.idle); // while results are saved others may come
      if (over() || allEnded()) break;
      await this.#until(() => joining.length > 0 || over() || allEnded());
    }
    this.#isOver = true;
    await this.#until(() => this.#beside.idle); // who is on its way in or out
    const interrupted = stop.aborted ? all.filter(({ standing }) => standing !== "ended") : [];
    for (const live of interrupted) this.#end(live, "stopped");
    if (!stop.aborted) for (const live of all) if (live.slot !== null) this.#roster.evict(live);
    await this.#until(() => this.#beside.idle);
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
    return this.#beside.until(condition, () => this.#executor.drain());
  }

  #settle(): void {
    for (const { live, dropped } of decideRungs(this.#roster.all))
      if (dropped === null) live.standing = live.goes === "paused" ? "paused" : "waiting";
      else this.#end(live, "dropped", dropped);
    this.#roster.settle();
  }

  #begin({ id, shares }: Pass): void {
    this.#passes = id + 1;
    for (const share of shares) if (share.firstRow === 0) this.#of(share).begun = share.step + 1;
  }

  /** An adapter has its slot: it is evaluated where it has not been, and goes on. */
  async #arrived(live: Live, first: boolean): Promise<void> {
    if (live.steps >= live.plan.steps) return this.#end(live, "done"); // it was kept when all was made
    if (first && !this.options.stop.aborted && isEvaluated(live, live.steps)) {
      if (isHeld(live, live.steps)) return this.#hold(live);
      const found = await this.#finisher.evaluation(live).result;
      if (live.steps === 0) live.before = found;
    }
    this.#roster.join(live);
  }

  /** All stages have been told of the step, and of nothing of the adapter's beyond: what is asked of them now is as it is after it. */
  async #afterStep(live: Live): Promise<void> {
    for (const fork of dueForks(live)) this.#beside.goOn(this.#fork(live, fork));
    if (live.steps === live.plan.steps) return this.#end(live, "done");
    if (this.#isDue(live)) this.#beside.goOn(this.#roster.keep(live));
    if (live.standing === "held") return this.#beside.goOn(this.#hold(live));
    if (isEvaluated(live, live.steps) && !this.options.stop.aborted) {
      const { sent, result } = this.#finisher.evaluation(live);
      await sent;
      this.#beside.goOn(result);
    }
    if (live.standing === "leaving" && live.begun === live.steps) this.#leaves(live);
  }

  #leaves(live: Live): void {
    if (live.goes === "ended") this.#end(live, "stopped");
    else this.#roster.evict(live);
  }

  /** A copy begins as the adapter is now: kept under the copy's name, it comes as any other that was kept. */
  async #fork(live: Live, fork: Fork, kept?: Kept): Promise<void> {
    const { plan, bus, model = "" } = this.options;
    const { plan: copy, data } = fork;
    const made = madeOf(plan, copy, data, model);
    const progress = { ...(kept?.progress ?? progressOf(live)), adapter: copy.name, made, best: null };
    try {
      const blocks = kept?.blocks ?? (await readState(bus, live.slot!));
      this.#keeper.forget(copy);
      await this.#keeper.save(plan, copy, { progress, blocks });
      this.#join(copy, data);
      forkOver(live, fork);
      this.#settle();
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#unmade(live, fork, textOf(error));
    }
  }

  /** The same where the adapter is on no stage; one that has made no step is begun anew. */
  #forkKept(live: Live): void {
    for (const fork of dueForks(live)) {
      const kept = this.#keeper.load(this.options.plan, live.plan, (text) => this.#tell.noticed(live.plan.index, text));
      if (kept) this.#beside.goOn(this.#fork(live, fork, kept));
      else if (fork.after === 0) {
        this.#joinAnew(fork.plan, fork.data);
        forkOver(live, fork);
      } else this.#unmade(live, fork, "it was not kept");
    }
  }

  #unmade(live: Live, fork: Fork, why: string): void {
    forkOver(live, fork);
    this.#tell.noticed(live.plan.index, `the copy ${fork.plan.name} was not made: ${why}`);
  }

  #isDue({ steps, saving, savedAt }: Live): boolean {
    const { keepEvery } = this.options;
    if (!keepEvery || saving) return false;
    if (keepEvery.steps !== null && steps % keepEvery.steps === 0) return true;
    if (keepEvery.minutes === null || now() - savedAt < 60_000 * keepEvery.minutes) return false;
    return this.#roster.all.filter((live) => live.saving).length < MOST_SAVES; // else at a later step
  }

  /** An evaluation decides whether the adapter goes on: until then it makes no step. */
  async #hold(live: Live): Promise<void> {
    const { patience, minDelta } = live.plan.recipe;
    live.standing = "held";
    const { loss } = (await this.#finisher.evaluation(live).result)!;
    if (isCounted(live, live.steps)) {
      live.best = judge(live.best, loss, live.steps, minDelta);
      if (live.best.step === live.steps) await this.#keepBest(live);
      if (live.best.since >= patience!) return this.#end(live, "early", `no better than at step ${live.best.step} since`);
    }
    if (isRung(live, live.steps) && live.goes === "waiting") live.goes = "rung";
    this.#roster.join(live);
  }

  async #keepBest(live: Live): Promise<void> {
    const { plan, bus } = this.options;
    try {
      const blocks = await readState(bus, live.slot!);
      await this.#keeper.save(plan, live.plan, { progress: progressOf(live), blocks }, "best");
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#tell.noticed(live.plan.index, `step ${live.steps}, its best, was not kept: ${textOf(error)}`);
    }
  }

  /** Ends an adapter: from now on it makes no step. Its last evaluation and its export go on beside the training of the others. */
  #end(live: Live, status: AdapterResult["status"], message: string | null = null): void {
    live.standing = "ended";
    for (const fork of live.forks.filter(({ isMade }) => !isMade)) this.#unmade(live, fork, `its last step is ${live.steps}`);
    this.#beside.goOn(this.#finisher.finish(live, status, message));
  }
}
