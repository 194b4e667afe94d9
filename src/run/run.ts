// The coordinator: goes through the schedule, tells the stages what to do, and keeps what comes back. Opens no device.
//
// More adapters than there are slots wait for one; who has a slot trains (schedule/admission.ts). Nothing here makes a stage wait but what
// decides its next action: adapters come and go, are evaluated, kept and exported beside the training of the others.

import { join } from "node:path";
import { now } from "../base/clock.ts";
import { RunError, textOf } from "../base/errors.ts";
import { range, sum } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { AdamStep } from "../bus/messages.ts";
import type { Plan } from "../plan/plan.ts";
import { admissions } from "../schedule/admission.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import type { Pass, StepRef } from "../schedule/lists.ts";
import { inputLength, pack } from "../schedule/pack.ts";
import type { Joining } from "../schedule/pipeline.ts";
import { rateFactor } from "../schedule/rate.ts";
import type { ShareRef } from "../schedule/shares.ts";
import { actionsOf } from "./actions.ts";
import { type Evaluation, evaluate } from "./evaluate.ts";
import { type AdapterResult, type Events, type Observer, type RunResult, together } from "./events.ts";
import { Executor } from "./executor.ts";
import { admit, exportAdapter, putFactors, readFactors, readState, writeState } from "./export.ts";
import { trainingShare } from "./feed.ts";
import { type Keeper, memoryKeeper } from "./keeper.ts";
import { type AdapterData, freshLive, type Live, madeOf, progressOf, restore, secondsOf } from "./live.ts";

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

class Training {
  readonly #started = now();
  readonly #live: readonly Live[];
  readonly #slots: (Live | null)[];
  readonly #joining: Joining[] = [];
  readonly #executor: Executor;
  readonly #keeper: Keeper;
  readonly #tell: Events;
  /** Of steps that the first stage has been told and the last has not: null for an adapter that failed. */
  readonly #made = new Map<string, AdamStep | null>();
  readonly #beside = new Set<Promise<void>>();
  #changed = Promise.withResolvers<void>();
  #passes = 0;

  constructor(private readonly options: RunOptions) {
    const { plan, data, bus, keeper, observers, model = "" } = options;
    this.#keeper = keeper ?? memoryKeeper();
    this.#tell = together(observers);
    this.#live = plan.adapters.map((adapter, i) => freshLive(adapter, data[i]!, madeOf(plan, adapter, data[i]!, model), i));
    for (const live of this.#live) {
      live.result = options.resumed?.get(live.plan.name) ?? null;
      if (live.result) live.standing = "ended";
    }
    this.#slots = range(plan.slots).map(() => null);
    const batchOf = ({ shares }: Pass) => {
      const filled = shares.map((ref) => {
        const { plan: adapter, slot, data: rows } = this.#live[ref.adapter]!;
        return trainingShare(adapter, slot!, rows.train, ref);
      });
      return pack(filled, plan.slots, plan.device.rowTile);
    };
    const tokensOf = ({ adapter, rows }: ShareRef) =>
      sum(rows.map((row) => inputLength(this.#live[adapter]!.data.train[row]!)));
    this.#executor = new Executor(bus, batchOf, tokensOf, (adapter) => this.#live[adapter]!.slot!);
  }

  async run(): Promise<RunResult> {
    const { lost, stop } = this.options;
    const gone = () => this.#fail(lost!.reason);
    const woken = () => this.#wake();
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
    this.#settle();
    // Those that begin, begin together: what the first passes hold shall not depend on how fast files are read.
    await this.#until(() => !this.#live.some(({ standing }) => standing === "joining"));
    const left = (adapter: number): boolean => stop.aborted || this.#live[adapter]!.standing !== "active";
    for (;;) {
      for (const { stage, action } of actionsOf(plan, this.#joining, left, this.#passes))
        if (action.kind === "step") await this.#step(stage, action.steps);
        else {
          if (stage === 0 && action.kind === "forward") this.#begin(action.pass);
          await this.#executor[action.kind](stage, action.pass);
        }
      await this.#executor.drain();
      if (stop.aborted || !this.#live.some(({ standing }) => standing !== "ended")) break;
      await this.#until(() => this.#joining.length > 0 || stop.aborted || this.#allEnded());
    }
    await this.#until(() => this.#beside.size === 0); // who is on its way in or out
    for (const live of this.#live) if (live.standing !== "ended") this.#end(live, "stopped");
    await this.#until(() => this.#beside.size === 0);
    await this.#executor.drain(); // throws what went wrong beside
    const results = this.#live.map(({ result }) => result!);
    return {
      adapters: results,
      seconds: (now() - this.#started) / 1000,
      tokens: sum(results.map(({ tokens }) => tokens)),
      stopped: stop.aborted,
    };
  }

  #allEnded(): boolean {
    return this.#live.every(({ standing }) => standing === "ended");
  }

  #begin({ id, shares }: Pass): void {
    this.#passes = id + 1;
    for (const { adapter, firstRow, step } of shares) if (firstRow === 0) this.#live[adapter]!.begun = step + 1;
  }

  /** Gives free slots to those that wait, and has others leave for those of a higher priority. */
  #settle(): void {
    const { stop } = this.options;
    if (stop.aborted) return;
    const of = (...standings: readonly Live["standing"][]) =>
      this.#live.filter(({ standing }) => standings.includes(standing)).map(candidateOf);
    const free = this.#slots.filter((who) => who === null).length;
    const leaving = this.#live.filter(
      ({ standing, slot }) => (standing === "leaving" || standing === "ended") && slot !== null,
    );
    const { admit: next, preempt } = admissions(of("waiting"), of("active", "held"), free, leaving.length);
    for (const adapter of next) this.#admit(this.#live[adapter]!);
    for (const adapter of preempt) this.#leave(this.#live[adapter]!, "waiting");
  }

  /** Gives an adapter a free slot: it comes as it was kept, or as it is before its first step. */
  #admit(live: Live): void {
    const { plan, bus, stop } = this.options;
    const slot = this.#slots.indexOf(null);
    this.#slots[slot] = live;
    live.slot = slot;
    live.standing = "joining";
    const { index, recipe } = live.plan;
    const fill = async (): Promise<void> => {
      const kept = this.#keeper.load(plan, live.plan, (text) => this.#tell.noticed(index, text));
      const { known } = live;
      live.known = true;
      await admit(bus, slot, live.plan);
      if (kept) {
        restore(live, kept.progress);
        await writeState(bus, slot, kept.blocks);
      } else if (recipe.initialAdapter)
        await putFactors(bus, plan, live.plan, slot, readFactors(recipe.initialAdapter, plan, live.plan));
      if (!known && !stop.aborted && isEvaluated(live)) {
        const found = await this.#evaluation(live).result;
        if (live.steps === 0) live.before = found;
      }
      live.steppedAt = now();
      live.savedAt = now();
      live.standing = "active";
      this.#joining.push({ adapter: index, work: live.plan.work, from: live.steps });
      if (live.steps >= live.plan.steps) this.#end(live, "done"); // it was kept when all was made
    };
    this.#goOnBeside(fill());
  }

  /** Has an adapter give up its slot, at once or when the step under way is made. */
  #leave(live: Live, goes: Live["goes"]): void {
    live.goes = goes;
    const atRest = live.standing === "active" && live.begun === live.steps;
    if (live.standing === "active") live.standing = "leaving";
    if (atRest) this.#evict(live);
  }

  #evict(live: Live): void {
    const { plan, bus } = this.options;
    const away = async (): Promise<void> => {
      const blocks = await readState(bus, live.slot!);
      await this.#keeper.save(plan, live.plan, { progress: progressOf(live), blocks });
      this.#free(live);
      live.standing = live.goes;
    };
    this.#goOnBeside(away());
  }

  #free(live: Live): void {
    if (live.slot !== null) this.#slots[live.slot] = null;
    live.slot = null;
  }

  /** One stage's part of these steps: decided when the first stage is told, reported when the last has been. */
  async #step(stage: number, refs: readonly StepRef[]): Promise<void> {
    const keyOf = ({ adapter, step }: StepRef) => `${adapter}.${step}`;
    for (const ref of refs) if (!this.#made.has(keyOf(ref))) this.#made.set(keyOf(ref), await this.#decide(ref));
    const steps = refs.flatMap((ref) => this.#made.get(keyOf(ref)) ?? []);
    if (steps.length > 0) await this.#executor.step(stage, steps);
    if (stage < this.options.bus.stages - 1) return;
    const made = refs.filter((ref) => this.#made.get(keyOf(ref)) !== null).map(({ adapter }) => this.#live[adapter]!);
    for (const ref of refs) this.#made.delete(keyOf(ref));
    for (const live of made) this.#report(live);
    for (const live of made) await this.#afterStep(live);
  }

  /**
   * An adapter's step from its mini-batch's loss and gradient norm; null where they are no numbers, which ends the adapter. Here its
   * iteration ends: the first stage has not begun its next mini-batch, and does so only if it stays active.
   */
  async #decide(ref: StepRef): Promise<AdamStep | null> {
    const live = this.#live[ref.adapter]!;
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
    live.decided = ref.step + 1;
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
    if (isEvaluated(live) && !this.options.stop.aborted) {
      const { sent, result } = this.#evaluation(live);
      await sent;
      this.#goOnBeside(result);
    }
    if (live.standing === "leaving" && live.begun === live.steps) this.#evict(live);
    else if (this.#isDue(live)) this.#goOnBeside(this.#keep(live));
  }

  #isDue({ steps, saving, savedAt }: Live): boolean {
    const { keepEvery } = this.options;
    if (!keepEvery || saving) return false;
    if (keepEvery.steps !== null && steps % keepEvery.steps === 0) return true;
    return keepEvery.minutes !== null && now() - savedAt >= 60_000 * keepEvery.minutes;
  }

  async #keep(live: Live): Promise<void> {
    const { plan, bus } = this.options;
    live.saving = true;
    live.savedAt = now();
    const progress = progressOf(live);
    try {
      const blocks = await readState(bus, live.slot!);
      await this.#keeper.save(plan, live.plan, { progress, blocks });
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#tell.noticed(live.plan.index, `step ${progress.step} was not kept: ${textOf(error)}`);
    } finally {
      live.saving = false;
    }
  }

  /** What need not be waited for; a failure ends the run. */
  #goOnBeside(work: Promise<unknown>): void {
    const task: Promise<void> = work
      .catch((error) => this.#fail(error))
      .then(() => {
        this.#beside.delete(task);
        this.#settle();
        this.#wake();
      });
    this.#beside.add(task);
  }

  #fail(error: unknown): void {
    this.#executor.fail(error);
    this.#wake();
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  /** Waits for what goes on beside; throws what went wrong. */
  async #until(condition: () => boolean): Promise<void> {
    for (await this.#executor.drain(); !condition(); await this.#executor.drain()) await this.#changed.promise;
  }

  #evaluation(live: Live): { readonly sent: Promise<void>; readonly result: Promise<Evaluation | null> } {
    const { plan, bus } = this.options;
    const held = live.data.eval;
    if (held.length === 0) return { sent: Promise.resolve(), result: Promise.resolve(null) };
    const { steps, slot } = live;
    const { sent, result } = evaluate(bus, plan, live.plan, slot!, held);
    const told = result.then((found) => {
      this.#tell.evaluated({ ...found, adapter: live.plan.index, step: steps });
      return found;
    });
    told.catch(() => undefined); // it may fail before anybody waits for it
    return { sent, result: told };
  }

  /** Ends an adapter: from now on it makes no step. Its last evaluation and its export go on beside the training of the others. */
  #end(live: Live, status: AdapterResult["status"], message: string | null = null): void {
    live.standing = "ended";
    this.#goOnBeside(this.#finish(live, status, message));
  }

  /** Last evaluation, export, result. An adapter that failed is not saved: its numbers are not to be used. */
  async #finish(live: Live, status: AdapterResult["status"], message: string | null): Promise<void> {
    const { plan, bus, output, stop, keeper } = this.options;
    const { data, steps, tokens, firstLoss, lastLoss, before, slot } = live;
    const { name, index } = live.plan;
    let after: Evaluation | null = null;
    let folder: string | null = null;
    let outcome = { status, message };
    if (status !== "failed" && steps > 0 && output !== null && slot !== null) {
      if (status === "stopped" && keeper) await this.#keep(live);
      if (!stop.aborted) after = await this.#evaluation(live).result;
      folder = join(output, name);
      try {
        await exportAdapter(bus, plan, live.plan, slot, folder, data.eval.length > 0 ? data.eval : data.train);
        this.#tell.saved({ adapter: index, step: steps, folder });
        if (status === "done") this.#keeper.forget(live.plan);
      } catch (error) {
        if (!isOwn(error)) throw error;
        outcome = { status: "failed", message: textOf(error) }; // the others go on
      }
    }
    this.#free(live);
    if (outcome.message) this.#tell.failed(index, outcome.message);
    const seconds = secondsOf(live);
    live.result = { name, ...outcome, steps, tokens, seconds, before, after, firstLoss, lastLoss, folder };
    this.#tell.ended(index, live.result);
  }
}

/** Whether an adapter is evaluated where it stands: before its first step, and then every so many; after the last is another matter. */
const isEvaluated = ({ steps, plan }: Live): boolean =>
  steps === 0 || (plan.recipe.evalEvery !== null && steps < plan.steps && steps % plan.recipe.evalEvery === 0);

const candidateOf = ({ plan, arrived }: Live) => ({ adapter: plan.index, priority: plan.recipe.priority, arrived });

/** Whether it is the adapter's alone: its file, not a stage. */
const isOwn = (error: unknown): boolean => error instanceof RunError && /^(files|export|checkpoint)\./.test(error.code);
