// The end of an adapter: its last evaluation, its export and its result.

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
import { checkProbe, exportBlocks, startExports } from "./export.ts";
import { keepsBest, runMetrics, scoreOf, temporaryFolder } from "./own-metrics.ts";
import { Probes } from "./probes.ts";
import type { AdapterScheduler } from "./scheduler.ts";
import { readParams, writeState } from "./slot.ts";

export type FinisherOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  /** Folder of the run; null exports nothing. */
  readonly output: string | null;
  readonly store: CheckpointStore;
  /** Save adapters that are stopped, so that a later run can continue them. */
  readonly saveStopped: boolean;
  readonly emit: Listener;
  readonly scheduler: AdapterScheduler;
  readonly stop: AbortSignal;
  /** Nothing is saved or exported before. */
  readonly whole?: Promise<void>;
};

/** Stands for an evaluation that the run's stop came before. */
const CUT_OFF = "cut off";

export class Finisher implements AsyncDisposable {
  readonly #exports = startExports();
  readonly #probes: Probes;
  #hasKept = false;
  /** Adapters that are ending. */
  #ending = 0;

  constructor(private readonly options: FinisherOptions) {
    this.#probes = new Probes(options.bus, options.plan);
  }

  /** Waits for files that are being written; adapters whose export has not begun are not exported. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#exports.close();
  }

  /** Whether an adapter made its last step and was kept for a run that evaluates and exports it, as the stop came first. */
  get hasKept(): boolean {
    return this.#hasKept;
  }

  /** Evaluates an adapter on its held-out rows, if there are any, as its state after `step`, and reports it. */
  evaluation(
    adapter: AdapterState,
    step = adapter.steps,
  ): { readonly sent: Promise<void>; readonly result: Promise<Evaluation | null> } {
    const { plan, bus } = this.options;
    const heldOut = adapter.data.eval;
    if (heldOut.length === 0) return { sent: Promise.resolve(), result: Promise.resolve(null) };
    const { batchSize, objective } = adapter.plan.recipe;
    const references = adapter.references?.eval ?? null;
    const { sent, result } = evaluate(bus, plan, { slot: adapter.slot!, samples: heldOut, batchSize, objective, references });
    const reported = result.then(async (measured) => {
      const own = await this.#ownMetrics(adapter, step);
      const found = own ? { ...measured, metrics: own } : measured;
      adapter.latest = found;
      const loss = finiteOrNull(found.loss);
      const event = { ...found, loss, isPreference: isPreference(objective) };
      this.options.emit({ type: "evaluation", ...adapterRef(adapter.plan), step, ...event });
      return found;
    });
    reported.catch(() => undefined); // it may fail before the caller awaits it
    return { sent, result: reported };
  }

  /** What the recipe's program says of the adapter as it is; null where it has none, or where that says nothing. */
  async #ownMetrics(adapter: AdapterState, step: number): Promise<Readonly<Record<string, number>> | null> {
    const { plan, bus, stop } = this.options;
    const { plan: of, slot } = adapter;
    const { metrics } = of.recipe;
    if (metrics === null || slot === null) return null;
    using folder = temporaryFolder();
    try {
      const at = join(folder.path, of.name);
      await exportBlocks(plan, of, () => readParams({ bus, slot }), at, this.#exports);
      return await runMetrics(metrics, at, { adapter: of.name, step, model: plan.recipe.model.path }, stop);
    } catch (error) {
      if (!(error instanceof MloraError)) throw error;
      if (!stop.aborted) this.#notice(adapter, `its own metrics at step ${step} are missing: ${textOf(error)}`);
      return null;
    }
  }

  /**
   * The last evaluation, the export and the result. An adapter that failed is not exported: its numbers are unusable. One that
   * the run's stop leaves no time to evaluate counts as stopped, for its evaluation may decide which state is saved.
   */
  async finish(adapter: AdapterState, status: AdapterResult["status"], message: string | null): Promise<void> {
    this.#ending++;
    try {
      await this.#finish(adapter, status, message);
    } finally {
      this.#ending--;
    }
  }

  async #finish(adapter: AdapterState, status: AdapterResult["status"], message: string | null): Promise<void> {
    const { output, stop } = this.options;
    if (this.options.whole) await this.options.whole;
    const { steps, tokens, firstLoss, lastLoss, before, made } = adapter;
    const { name } = adapter.plan;
    let after: Evaluation | null = null;
    let folder: string | null = null;
    let outcome = { status, message };
    try {
      const isHere = stop.aborted || adapter.slot === null ? false : await this.options.scheduler.bring(adapter);
      // Before it is saved, so that adapters which are stopped together share passes; its state changes no more.
      const probe = status === "stopped" && !isHere && output !== null && steps > 0 ? this.#probe(adapter) : null;
      if (status === "stopped") await this.#save(adapter);
      if (status === "dropped") after = adapter.latest;
      else if (status !== "failed" && output !== null && adapter.data.eval.length > 0) {
        const last = isHere ? await this.#lastEvaluation(adapter) : CUT_OFF;
        if (last !== CUT_OFF) after = checked(last);
        else if (status !== "stopped") {
          outcome = { status: "stopped", message: null };
          this.#hasKept = true;
          await this.#save(adapter);
        }
      }
      if (status !== "failed" && status !== "dropped" && output !== null && steps > 0)
        folder = await this.#export(adapter, join(output, name), probe);
    } catch (error) {
      if (!isOwn(error)) throw error;
      outcome = { status: "failed", message: textOf(error) }; // the other adapters train on
      if (!isOfNumbers(error)) await this.#saveTrained(adapter);
    }
    this.options.scheduler.free(adapter);
    if (outcome.status === "failed")
      this.options.emit({ type: "failed", ...adapterRef(adapter.plan), message: outcome.message! });
    const seconds = secondsOf(adapter);
    adapter.result = { name, ...outcome, steps, tokens, seconds, before, after, firstLoss, lastLoss, folder, made };
    this.options.emit(endedEvent(adapter.plan, adapter.result));
    if (outcome.status === "failed" || outcome.status === "stopped") return;
    await adapter.saved; // a save under way would find its folder gone
    this.#forget(adapter); // after its end is recorded
  }

  /** Only its folder could not be written or read: a checkpoint lets the same command export it without training it again. */
  async #saveTrained(adapter: AdapterState): Promise<void> {
    await adapter.saved;
    await this.#save(adapter);
  }

  /** Keeps an adapter that makes no further step now, where a later run can continue it. */
  async #save(adapter: AdapterState): Promise<void> {
    if (this.options.saveStopped && adapter.slot !== null && adapter.steps > 0) await this.options.scheduler.saveEnded(adapter);
  }

  #notice({ plan }: AdapterState, text: string): void {
    this.options.emit(noticeEvent(plan, text));
  }

  #forget(adapter: AdapterState): void {
    try {
      this.options.store.remove(adapter.plan);
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#notice(adapter, `its checkpoints are still there: ${textOf(error)}`);
    }
  }

  /** The held-out loss of what is exported: with patience that is the best state, which is written back into the slot. */
  async #lastEvaluation(adapter: AdapterState): Promise<Evaluation | null | typeof CUT_OFF> {
    const { plan, bus, stop } = this.options;
    const { recipe } = adapter.plan;
    let last = adapter.best?.judged === adapter.steps ? adapter.latest : await this.evaluation(adapter).result;
    if (last !== null && recipe.metrics !== null && last.metrics === undefined && stop.aborted) return CUT_OFF;
    if (!keepsBest(recipe) || last === null) return last;
    const score = scoreOf(recipe, last);
    if (score !== null) adapter.best = updateBest(adapter.best, score, adapter.steps, recipe.minDelta);
    if (adapter.best === null || adapter.best.step === adapter.steps) return last;
    const best = this.options.store.load(plan, adapter.plan, (text) => this.#notice(adapter, text), "best");
    if (!best) return last;
    await writeState(bus, adapter.slot!, best.blocks);
    this.#notice(adapter, `step ${best.progress.step} was better than step ${adapter.steps}: it is what is saved`);
    last = await this.evaluation(adapter, best.progress.step).result;
    return last;
  }

  /** The loss of an adapter on a few rows as it is now; null where it is not on the devices. */
  #probe(adapter: AdapterState): Promise<number | null> {
    const { slot, data } = adapter;
    if (slot === null || !this.options.scheduler.isOnDevice(adapter)) return Promise.resolve(null);
    const loss = this.#probes.loss(slot, data.eval.length > 0 ? data.eval : data.train);
    loss.catch(() => undefined); // it may fail before it is awaited
    return loss;
  }

  /**
   * From its slot, where it is on the devices with an evaluation, or from its checkpoint where it has none; null where
   * there is neither. Leaves nothing of an adapter that could not be exported.
   */
  async #export(adapter: AdapterState, folder: string, probe: Promise<number | null> | null): Promise<string | null> {
    const { plan, bus, store, emit } = this.options;
    const { slot } = adapter;
    const stored = slot === null ? store.load(plan, adapter.plan, (text) => this.#notice(adapter, text)) : null;
    if (slot === null && !stored) return null;
    const before = existsSync(folder); // exported before the run was interrupted
    try {
      const { plan: of } = adapter;
      if (stored) await exportBlocks(plan, of, async () => stored.blocks, folder, this.#exports, this.#ending);
      else {
        checkProbe(of.name, await (probe ?? this.#probe(adapter)));
        await exportBlocks(plan, of, () => readParams({ bus, slot: slot! }), folder, this.#exports, this.#ending);
      }
    } catch (error) {
      try {
        if (!before) removeAdapter(folder);
      } catch {
        // the first fault is reported, not that of cleaning up after it
      }
      throw error;
    }
    emit({ type: "saved", ...adapterRef(adapter.plan), step: adapter.steps, folder });
    return folder;
  }
}

/** Whether the adapter's numbers are at fault, not its files. */
const isOfNumbers = (error: unknown): boolean =>
  error instanceof MloraError && ["export.loss", "peft.values"].includes(error.code);

/** No training loss follows the last step, so weights that are NaN must be caught here. */
function checked(last: Evaluation | null): Evaluation | null {
  if (last === null || Number.isFinite(last.loss)) return last;
  throw new RunError(
    "export.loss",
    `after its last step the held-out loss is ${last.loss}; lower the learning rate or set max_grad_norm`,
  );
}
