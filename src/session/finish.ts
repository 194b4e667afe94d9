// How adapters end: evaluated for the last time, exported, and told of.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { MloraError, RunError, textOf } from "../base/errors.ts";
import type { Bus } from "../bus/bus.ts";
import { removeAdapter } from "../files/output.ts";
import { isPreference } from "../objectives/registry.ts";
import type { Plan } from "../plan/plan.ts";
import { updateBest } from "../schedule/sweeps.ts";
import { type AdapterState, secondsOf } from "./adapter-state.ts";
import { type CheckpointStore, isOwn } from "./checkpoints.ts";
import { type Evaluation, evaluate } from "./evaluate.ts";
import { type AdapterResult, adapterRef, endedEvent, finiteOrNull, type Listener, noticeEvent } from "./events.ts";
import { exportAdapter, exportKept, writeState } from "./export.ts";
import type { AdapterScheduler } from "./scheduler.ts";

export type FinisherOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  /** Folder of the run; null exports nothing. */
  readonly output: string | null;
  readonly store: CheckpointStore;
  /** Keep those that are stopped, so that they can go on. */
  readonly saveStopped: boolean;
  readonly emit: Listener;
  readonly scheduler: AdapterScheduler;
  readonly stop: AbortSignal;
};

export class Finisher {
  constructor(private readonly options: FinisherOptions) {}

  /** Evaluates an adapter on its held-out rows, if there are any, as what it is after `step`, and tells. */
  evaluation(
    live: AdapterState,
    step = live.steps,
  ): { readonly sent: Promise<void>; readonly result: Promise<Evaluation | null> } {
    const { plan, bus } = this.options;
    const heldOut = live.data.eval;
    if (heldOut.length === 0) return { sent: Promise.resolve(), result: Promise.resolve(null) };
    const { batchSize, objective } = live.plan.recipe;
    const references = live.references?.eval ?? null;
    const { sent, result } = evaluate(bus, plan, { slot: live.slot!, samples: heldOut, batchSize, objective, references });
    const told = result.then((found) => {
      live.latest = found;
      const loss = finiteOrNull(found.loss);
      const event = { ...found, loss, isPreference: isPreference(objective) };
      this.options.emit({ type: "evaluation", ...adapterRef(live.plan), step, ...event });
      return found;
    });
    told.catch(() => undefined); // it may fail before anybody waits for it
    return { sent, result: told };
  }

  /** Last evaluation, export, result. An adapter that failed is not saved: its numbers are not to be used. */
  async finish(live: AdapterState, status: AdapterResult["status"], message: string | null): Promise<void> {
    const { output, stop, saveStopped } = this.options;
    const { steps, tokens, firstLoss, lastLoss, before, made } = live;
    const { name } = live.plan;
    let after: Evaluation | null = null;
    let folder: string | null = null;
    let outcome = { status, message };
    try {
      if (status === "stopped" && saveStopped && live.slot !== null && steps > 0) await this.options.scheduler.keep(live);
      if (status === "dropped") after = live.latest;
      else if (status !== "failed" && !stop.aborted && live.slot !== null && output !== null)
        after = checked(await this.#lastEvaluation(live));
      if (status !== "failed" && status !== "dropped" && output !== null && steps > 0)
        folder = await this.#export(live, join(output, name));
    } catch (error) {
      if (!isOwn(error)) throw error;
      outcome = { status: "failed", message: textOf(error) }; // the others go on
      if (!isOfNumbers(error)) await this.#keepTrained(live);
    }
    this.options.scheduler.free(live);
    if (outcome.status === "failed") this.options.emit({ type: "failed", ...adapterRef(live.plan), message: outcome.message! });
    const seconds = secondsOf(live);
    live.result = { name, ...outcome, steps, tokens, seconds, before, after, firstLoss, lastLoss, folder, made };
    this.options.emit(endedEvent(live.plan, live.result));
    if (outcome.status === "failed" || outcome.status === "stopped") return;
    await live.kept; // a save that is under way would find its folder gone
    this.#forget(live); // not before it is known to have ended
  }

  /** What was trained is whole, and only its folder could not be written or read: the same command saves it without training it again. */
  async #keepTrained(live: AdapterState): Promise<void> {
    await live.kept;
    if (this.options.saveStopped && live.slot !== null && live.steps > 0) await this.options.scheduler.keep(live);
  }

  #notice({ plan }: AdapterState, text: string): void {
    this.options.emit(noticeEvent(plan, text));
  }

  #forget(live: AdapterState): void {
    try {
      this.options.store.remove(live.plan);
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#notice(live, `its checkpoints are still there: ${textOf(error)}`);
    }
  }

  /** The held-out loss of what is exported: of an adapter with patience that is its best, which is put back in its place. */
  async #lastEvaluation(live: AdapterState): Promise<Evaluation | null> {
    const { plan, bus } = this.options;
    const { patience, minDelta } = live.plan.recipe;
    let last = live.best?.judged === live.steps ? live.latest : await this.evaluation(live).result;
    if (patience === null || last === null) return last;
    live.best = updateBest(live.best, last.loss, live.steps, minDelta);
    if (live.best.step === live.steps) return last;
    const best = this.options.store.load(plan, live.plan, (text) => this.#notice(live, text), "best");
    if (!best) return last;
    await writeState(bus, live.slot!, best.blocks);
    this.#notice(live, `step ${best.progress.step} was better than step ${live.steps}: it is what is saved`);
    last = await this.evaluation(live, best.progress.step).result;
    return last;
  }

  /** Leaves nothing of an adapter that could not be saved. */
  async #export(live: AdapterState, folder: string): Promise<string | null> {
    const before = existsSync(folder); // saved when the run was interrupted
    try {
      if (!(await this.#save(live, folder))) return null;
    } catch (error) {
      if (!before) this.#remove(folder);
      throw error;
    }
    this.options.emit({ type: "saved", ...adapterRef(live.plan), step: live.steps, folder });
    return folder;
  }

  /** The fault that is told is the first one, not that of cleaning up after it. */
  #remove(folder: string): void {
    try {
      removeAdapter(folder);
    } catch {
      // its disk is gone
    }
  }

  /** From the stages, or, where it has no place there, from where it was kept; false where it was not. */
  async #save(live: AdapterState, folder: string): Promise<boolean> {
    const { plan, bus } = this.options;
    const { data, slot } = live;
    if (slot !== null) {
      await exportAdapter(bus, plan, live.plan, slot, folder, data.eval.length > 0 ? data.eval : data.train);
    } else {
      const kept = this.options.store.load(plan, live.plan, (text) => this.#notice(live, text));
      if (!kept) return false;
      exportKept(plan, live.plan, kept.blocks, folder);
    }
    return true;
  }
}

/** Whether it is the fault of the adapter's numbers, not of its files. */
const isOfNumbers = (error: unknown): boolean =>
  error instanceof MloraError && ["export.loss", "peft.values"].includes(error.code);

/** After its last step no training loss would show that an adapter's numbers are none. */
function checked(last: Evaluation | null): Evaluation | null {
  if (last === null || Number.isFinite(last.loss)) return last;
  throw new RunError(
    "export.loss",
    `after its last step the held-out loss is ${last.loss}; lower the learning rate or set max_grad_norm`,
  );
}
