// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.
//
// More adapters than there are slots wait for one; who has a slot trains (roster.ts). Nothing here makes a stage wait but what decides its
// next action: adapters come and go, are evaluated, kept and exported beside the training of the others.

import { now } from "../base/clock.ts";
import { sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdamStep } from "../bus/messages.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import type { Pass, StepRef } from "../schedule/lists.ts";
import { inputLength, pack } from "../schedule/pack.ts";
import { rateFactor } from "../schedule/rate.ts";
import type { ShareRef } from "../schedule/shares.ts";
import { judge } from "../schedule/sweeps.ts";
import { actionsOf } from "./actions.ts";
import { Beside } from "./beside.ts";
import { type AdapterResult, type Events, type Observer, type RunResult, together } from "./events.ts";
import { Executor } from "./executor.ts";
import { readState } from "./export.ts";
import { trainingShare } from "./feed.ts";
import { Finisher } from "./finish.ts";
import { type Keeper, memoryKeeper } from "./keeper.ts";
import { type AdapterData, freshLive, isCounted, isEvaluated, isRung, type Live, madeOf, progressOf } from "./live.ts";
import { Roster } from "./roster.ts";
import { decideRungs } from "./rungs.ts";

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
  readonly observers: readonly Observer[];
  /** Aborted, with its reason, when a stage is gone. */
  readonly lost?: AbortSignal | null;
  /** Aborted: mini-batches that were begun are finished, everything is saved, and the run ends. */
  readonly stop: AbortSignal;
};

/** Trains all adapters of the plan. Throws what a stage failed with; what one adapter fails with ends that adapter alone. */
export const run = (options: RunOptions): Promise<RunResult> => new Training(options).run();

/** Whether the adapter's next step waits for the evaluation after this one. */
const isHeld = (live: Live, step: number): boolean => isCounted(live, step) || isRung(live, step);

class Training {
  readonly #started = now();
  readonly #executor: Executor;
  readonly #beside: Beside;
  readonly #roster: Roster;
  readonly #keeper: Keeper;
  readonly #tell: Events;
  readonly #finisher: Finisher;
  /** Of steps that the first stage has been told and the last has not: null for an adapter that failed. */
  readonly #made = new Map<string, AdamStep | null>();
  #passes = 0;

  constructor(private readonly options: RunOptions) {
    const { plan, bus, keeper, observers, stop } = options;
    this.#keeper = keeper ?? memoryKeeper();
    this.#tell = together(observers);
    const batchOf = ({ shares }: Pass) => {
      const filled = shares.map((ref) => {
        const { plan: adapter, slot, data } = this.#of(ref);
        return trainingShare(adapter, slot!, data.train, ref);
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
      arrived: (live, first) => this.#arrived(live, first),
      leaves: (live) => this.#leaves(live),
    });
    const keepStopped = keeper !== undefined;
    this.#finisher = new Finisher({ ...options, keeper: this.#keeper, keepStopped, tell: this.#tell, roster: this.#roster });
    for (const [i, adapter] of plan.adapters.entries()) this.#enter(adapter, options.data[i]!);
  }

  #of({ adapter }: { readonly adapter: number }): Live {
    return this.#roster.all[adapter]!;
  }

  #enter(adapter: AdapterPlan, data: AdapterData): void {
    const { plan, model = "", resumed } = this.options;
    const live = freshLive(adapter, data, madeOf(plan, adapter, data, model), this.#roster.all.length);
    live.result = resumed?.get(adapter.name) ?? null;
    if (live.result) live.standing = "ended";
    this.#roster.all.push(live);
  }

  async run(): Promise<RunResult> {
    const { lost, stop } = this.options;
    const gone = () => {
      this.#executor.fail(lost!.reason);
      this.#beside.wake();
    };
    const woken = () => this.#beside.wake();
    lost?.addEventListener("abort", gone);
    stop.addEventListener("abort", woken);
    try {
      return await this.#train();
    } finally {
      lost?.removeEventListener("abort", gone);
      stop.removeEventListener("abort", woken);
    }
  }

  async #train(): Promise<RunResult> {
    const { plan, stop } = this.options;
    const { all, joining } = this.#roster;
    this.#settle();
    // Those that begin, begin together: what the first passes hold shall not depend on how fast files are read.
    await this.#until(() => !all.some(({ standing }) => standing === "joining"));
    const left = (adapter: number): boolean => stop.aborted || all[adapter]!.standing !== "active";
    const allEnded = () => all.every(({ standing }) => standing === "ended");
    for (;;) {
      for (const { stage, action } of actionsOf(plan, joining, left, this.#passes))
        if (action.kind === "step") await this.#step(stage, action.steps);
        else {
          if (stage === 0 && action.kind === "forward") this.#begin(action.pass);
          await this.#executor[action.kind](stage, action.pass);
        }
      await this.#executor.drain();
      if (stop.aborted || allEnded()) break;
      await this.#until(() => joining.length > 0 || stop.aborted || allEnded());
    }
    await this.#until(() => this.#beside.idle); // who is on its way in or out
    for (const live of all) if (live.standing !== "ended") this.#end(live, "stopped");
    await this.#until(() => this.#beside.idle);
    const results = all.map(({ result }) => result!);
    return {
      adapters: results,
      seconds: (now() - this.#started) / 1000,
      tokens: sum(results.map(({ tokens }) => tokens)),
      stopped: stop.aborted,
    };
  }

  /** Waits for what goes on beside; throws what went wrong. */
  #until(condition: () => boolean): Promise<void> {
    return this.#beside.until(condition, () => this.#executor.drain());
  }

  #settle(): void {
    for (const { live, dropped } of decideRungs(this.#roster.all))
      if (dropped === null) live.standing = "waiting";
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

  /** One stage's part of these steps: decided when the first stage is told, reported when the last has been. */
  async #step(stage: number, refs: readonly StepRef[]): Promise<void> {
    const keyOf = ({ adapter, step }: StepRef) => `${adapter}.${step}`;
    for (const ref of refs) if (!this.#made.has(keyOf(ref))) this.#made.set(keyOf(ref), await this.#decide(ref));
    const steps = refs.flatMap((ref) => this.#made.get(keyOf(ref)) ?? []);
    if (steps.length > 0) await this.#executor.step(stage, steps);
    if (stage < this.options.bus.stages - 1) return;
    const made = refs.filter((ref) => this.#made.get(keyOf(ref)) !== null).map((ref) => this.#of(ref));
    for (const ref of refs) this.#made.delete(keyOf(ref));
    for (const live of made) this.#report(live);
    for (const live of made) await this.#afterStep(live);
  }

  /**
   * An adapter's step from its mini-batch's loss and gradient norm; null where they are no numbers, which ends the adapter. Here its
   * iteration ends: the first stage has not begun its next mini-batch, and does so only if it stays active.
   */
  async #decide(ref: StepRef): Promise<AdamStep | null> {
    const live = this.#of(ref);
    const { recipe, steps } = live.plan;
    const { loss, tokens, squares } = await this.#executor.result(ref);
    if (live.standing === "ended") return null;
    const gradNorm = gradNormOf(squares);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      const message = `step ${ref.step + 1}: the loss is ${loss} and the gradient norm ${gradNorm}`;
      this.#end(live, "failed", `${message}; lower the learning rate or set max_grad_norm`);
      return null;
    }
    const { beta1, beta2, eps, weightDecay, maxGradNorm } = recipe.optimizer;
    const learningRate = recipe.optimizer.learningRate * rateFactor(recipe.schedule, ref.step, steps);
    const coefficient = clipCoefficient(gradNorm, maxGradNorm);
    live.step = { loss, tokens, gradNorm, learningRate, step: ref.step + 1 };
    if (live.standing === "active" && isHeld(live, ref.step + 1)) live.standing = "held";
    this.#settle();
    return { adapter: live.slot!, t: ref.step + 1, learningRate, beta1, beta2, eps, weightDecay, coefficient };
  }

  /** Counts and tells of the step that an adapter has made. */
  #report(live: Live): void {
    const { plan } = live;
    const { loss, tokens, gradNorm, learningRate, step } = live.step!;
    const time = now();
    live.steps = step;
    live.tokens += tokens;
    live.firstLoss ??= loss;
    live.lastLoss = loss;
    this.#tell.stepped({
      adapter: plan.index,
      step,
      steps: plan.steps,
      epoch: Math.floor((step - 1) / plan.stepsPerEpoch) + 1,
      loss,
      learningRate,
      gradNorm,
      tokens,
      tokensPerSecond: (1000 * tokens) / Math.max(1e-3, time - live.steppedAt),
    });
    live.steppedAt = time;
  }

  /** All stages have been told of the step, and of nothing of the adapter's beyond: what is asked of them now is as it is after it. */
  async #afterStep(live: Live): Promise<void> {
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

  #isDue({ steps, saving, savedAt }: Live): boolean {
    const { keepEvery } = this.options;
    if (!keepEvery || saving) return false;
    if (keepEvery.steps !== null && steps % keepEvery.steps === 0) return true;
    return keepEvery.minutes !== null && now() - savedAt >= 60_000 * keepEvery.minutes;
  }

  /** An evaluation decides whether the adapter goes on: until then it makes no step. */
  async #hold(live: Live): Promise<void> {
    const { plan, bus } = this.options;
    const { patience, minDelta } = live.plan.recipe;
    live.standing = "held";
    const { loss } = (await this.#finisher.evaluation(live).result)!;
    if (isCounted(live, live.steps)) {
      live.best = judge(live.best, loss, live.steps, minDelta);
      if (live.best.step === live.steps) {
        const blocks = await readState(bus, live.slot!);
        await this.#keeper.save(plan, live.plan, { progress: progressOf(live), blocks }, "best");
      }
      if (live.best.since >= patience!) return this.#end(live, "early", `no better than at step ${live.best.step} since`);
    }
    if (isRung(live, live.steps) && live.goes === "waiting") live.goes = "rung";
    this.#roster.join(live);
  }

  /** Ends an adapter: from now on it makes no step. Its last evaluation and its export go on beside the training of the others. */
  #end(live: Live, status: AdapterResult["status"], message: string | null = null): void {
    live.standing = "ended";
    this.#beside.goOn(this.#finisher.finish(live, status, message));
  }
}
