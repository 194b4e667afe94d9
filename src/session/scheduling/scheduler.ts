// Gives slots and memory to adapters by priority and takes them away; saves those that leave. Where more train than the devices
// have room for, they take turns (residency.ts).

import { now } from "../../base/clock.ts";
import { textOf } from "../../base/errors.ts";
import { maxOf, range, sum } from "../../base/shape.ts";
import type { Bus } from "../../bus/bus.ts";
import { type AdapterPlan, bytesOnStages, type Plan } from "../../plan/plan.ts";
import { admissibleBytes } from "../../plan/waiting-memory.ts";
import { admissions, type Candidate, hasRoom, type Room, without } from "../../schedule/admission.ts";
import type { Joining } from "../../schedule/pipeline.ts";
import { beginIn } from "../evaluation/references.ts";
import { type Listener, noticeEvent } from "../events/events.ts";
import { type CheckpointStore, isOwn, type Which } from "../state/checkpoints.ts";
import { readState, release, writeState } from "../state/slot.ts";
import { type AdapterState, apply, isBetweenSteps, needsAnswers, progressOf, restore } from "./adapter-state.ts";
import type { BackgroundTasks } from "./background.ts";
import { Few } from "./few.ts";
import { Residency } from "./residency.ts";
import { isAdmissible, isInTraining, isToLeave, type LifecycleEvent } from "./transition.ts";

export type SchedulerOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  readonly store: CheckpointStore;
  readonly emit: Listener;
  readonly background: BackgroundTasks;
  /** Milliseconds that a step of one adapter takes of the devices; null before there is one. */
  readonly msPerStep: () => number | null;
  /** Either is aborted: no slot is given any more. */
  readonly stop: AbortSignal;
  readonly suspend: AbortSignal;
  /** Called with an adapter that gets a slot. */
  readonly placed: (adapter: AdapterState, slot: number) => void;
  /** Called with an adapter that has its slot and state, before its next mini-batch; `first`: at its first admission. */
  readonly arrived: (adapter: AdapterState, first: boolean) => Promise<void>;
  /** Called with an adapter that is to leave now, between two of its steps; or that has left, to end. */
  readonly leaves: (adapter: AdapterState) => void;
  /** Called with an adapter that cannot be trained further. */
  readonly failed: (adapter: AdapterState, message: string) => void;
  /** Called with an adapter that is to answer prompts before it trains further. */
  readonly answers: (adapter: AdapterState) => void;
  /** Called with an adapter that has left and is saved. */
  readonly left: (adapter: AdapterState) => void;
};

/** Adapters that train no further and are saved at once: the host holds the state of each meanwhile. */
const MOST_STORED = 4;

export class AdapterScheduler {
  /** All adapters of the run, by their index. */
  readonly all: AdapterState[] = [];
  /** Adapters for the pipeline to take into its next packed batches. */
  readonly joining: Joining[] = [];
  readonly #slots: (AdapterState | null)[];
  readonly #bytes = new WeakMap<AdapterPlan, readonly number[]>();
  readonly #residency: Residency;
  readonly #storing = new Few(MOST_STORED);

  constructor(private readonly options: SchedulerOptions) {
    const { plan, bus, msPerStep } = options;
    this.#slots = range(plan.slots).map(() => null);
    const room = plan.stages.map(({ sizes }) => sizes.blockBytes);
    this.#residency = new Residency({ bus, room, msPerStep, bytesOf: (adapter) => this.#bytesOf(adapter.plan) });
  }

  /** Whether there is room for these adapters, next to those that wait. */
  hasRoomFor(late: readonly AdapterPlan[]): boolean {
    const all = [...this.all.filter(isAdmissible).map(({ plan }) => plan), ...late];
    let room = this.#free;
    for (const plan of all) {
      const needed = { bytes: this.#bytesOf(plan) };
      if (!hasRoom(room, needed)) return false;
      room = without(room, needed);
    }
    return true;
  }

  /** What no adapter has. */
  get #free(): Room {
    const { stages, adapters } = this.options.plan;
    const taken = this.#roomOf(this.#slots.filter((adapter) => adapter !== null));
    return {
      slots: this.#slots.length - taken.slots,
      bytes: stages.map(({ sizes }, stage) => {
        const largest = maxOf(adapters.map((of) => this.#bytesOf(of)[stage]!));
        return admissibleBytes(sizes, largest) - taken.bytes[stage]!;
      }),
    };
  }

  #roomOf(adapters: readonly AdapterState[]): Room {
    const needed = adapters.map(({ plan }) => this.#bytesOf(plan));
    const bytes = this.options.plan.stages.map((_, stage) => sum(needed.map((of) => of[stage]!)));
    return { slots: adapters.length, bytes };
  }

  #bytesOf(adapter: AdapterPlan): readonly number[] {
    const known = this.#bytes.get(adapter) ?? bytesOnStages(this.options.plan, adapter);
    this.#bytes.set(adapter, known);
    return known;
  }

  #candidateOf({ plan, arrived }: AdapterState): Candidate {
    return { adapter: plan.index, priority: plan.recipe.priority, arrived, bytes: this.#bytesOf(plan) };
  }

  /**
   * Gives free slots to adapters that wait, and preempts others for those of a higher priority. What it starts may lead back
   * here.
   */
  settle(): void {
    if (this.options.stop.aborted || this.options.suspend.aborted) return;
    const admissible = this.all.filter(isAdmissible);
    if (admissible.length > 0) this.#admitThese(admissible);
    for (const adapter of this.#residency.endTurns(this.all.filter(({ status }) => status === "active"))) {
      if (adapter.status !== "active") continue; // a listener has paused or stopped it
      apply(adapter, "turnEnded");
      if (isBetweenSteps(adapter)) this.rest(adapter);
    }
  }

  #admitThese(admissible: readonly AdapterState[]): void {
    const waiting = admissible.map((of) => this.#candidateOf(of));
    const isTraining = (of: AdapterState) => isInTraining(of) && !isToLeave(of);
    const training = this.all.filter(isTraining).map((of) => this.#candidateOf(of));
    const leaving = this.all.filter((of) => of.slot !== null && (of.status === "ended" || isToLeave(of)));
    const { admit, preempt } = admissions(waiting, training, this.#free, this.#roomOf(leaving));
    for (const index of admit) {
      const adapter = this.all[index]!;
      if (isAdmissible(adapter) && hasRoom(this.#free, { bytes: this.#bytesOf(adapter.plan) })) this.#admit(adapter);
    }
    for (const index of preempt) if (isTraining(this.all[index]!)) this.leave(this.all[index]!, "preempted");
  }

  /** After an admission or an evaluation: an adapter trains from its present step, or leaves. */
  join(adapter: AdapterState, event: "joined" | "rungReached"): void {
    apply(adapter, event);
    this.#residency.stay(adapter);
    if (adapter.status === "leaving") {
      if (!this.options.stop.aborted) this.options.leaves(adapter); // else it ends where it is
      return;
    }
    adapter.steppedAt = now();
    if (needsAnswers(adapter)) this.options.answers(adapter);
    else this.train(adapter);
  }

  /** Hands an adapter to the pipeline, from its present step on. */
  train(adapter: AdapterState): void {
    const { index, work, recipe } = adapter.plan;
    const of = { adapter: index, from: adapter.steps, priority: recipe.priority };
    this.joining.push({ ...of, work: adapter.rollouts?.work ?? work });
  }

  /** Gives an adapter a free slot and fills it with the state that was saved, or with that before its first step. */
  #admit(adapter: AdapterState): void {
    const { plan, bus, store, emit, background, arrived } = this.options;
    const slot = this.#slots.indexOf(null);
    this.#slots[slot] = adapter;
    adapter.slot = slot;
    this.options.placed(adapter, slot);
    apply(adapter, "admitted");
    const fill = async (): Promise<void> => {
      if (!(await this.#residency.enter(adapter, { isFetched: false }))) return this.#withdraw(adapter);
      const notice = (text: string) => emit(noticeEvent(adapter.plan, text));
      const kept = store.load(plan, adapter.plan, notice);
      const { data, references, made } = adapter;
      const options = { isKept: kept !== null, notify: notice, model: made.model };
      adapter.references = await beginIn({ bus, plan, adapter: adapter.plan, slot }, data, references, options);
      if (kept) {
        restore(adapter, kept.progress);
        await writeState(bus, slot, kept.blocks);
      }
      const first = !adapter.wasAdmitted;
      adapter.wasAdmitted = true;
      adapter.savedAt = now();
      await arrived(adapter, first);
    };
    background.start(fill());
  }

  /** Has an adapter leave its slot: at once, after the step under way, or when its admission or evaluation is over. */
  leave(adapter: AdapterState, event: Extract<LifecycleEvent, "preempted" | "pauseRequested" | "stopRequested">): void {
    const wasTraining = adapter.status === "active" || adapter.status === "resting";
    apply(adapter, event);
    adapter.sampling?.abort();
    if (wasTraining && isBetweenSteps(adapter)) this.options.leaves(adapter);
    if (adapter.status === "joining") this.#residency.cancel(adapter); // it need not come to the devices
  }

  /** Has an adapter whose turn is over, and which is between two steps, wait for the next one in host memory. */
  rest(adapter: AdapterState): void {
    const turn = async (): Promise<void> => {
      await this.#residency.leave(adapter);
      const isHere = adapter.status === "resting" && (await this.#residency.enter(adapter, { isFetched: true }));
      if (isHere && adapter.status === "resting") this.join(adapter, "joined");
    };
    this.options.background.start(turn());
  }

  /** Has an adapter that has made its last step on the devices; false where it is in host memory and stays there. */
  bring(adapter: AdapterState): Promise<boolean> {
    return this.#residency.enter(adapter, { isFetched: true, isFirst: true });
  }

  /** No adapter takes turns any more: those in host memory stay there, but for such as end and are yet to be evaluated. */
  close(): void {
    this.#residency.close(!this.options.stop.aborted);
  }

  isOnDevice(adapter: AdapterState): boolean {
    return this.#residency.isHere(adapter);
  }

  /** Whether it has a slot, and waits for room on the devices to begin. */
  isQueued(adapter: AdapterState): boolean {
    return adapter.status === "joining" && this.#residency.isWaiting(adapter);
  }

  /** An adapter gives back the slot that it could not begin in. */
  #withdraw(adapter: AdapterState): void {
    this.#slots[adapter.slot!] = null;
    adapter.slot = null;
    if (adapter.nextStatus === "ended") this.options.leaves(adapter);
    else apply(adapter, "withdrawn");
  }

  /** Saves an adapter that is leaving, between two of its steps, and frees its slot. */
  evict(adapter: AdapterState): void {
    const away = async (): Promise<void> => {
      try {
        await this.#storing.run(() => this.store(adapter));
      } catch (error) {
        if (!isOwn(error)) throw error;
        this.options.failed(
          adapter,
          `it had to leave its slot after step ${adapter.steps} and could not be kept: ${textOf(error)}`,
        );
        return;
      }
      this.free(adapter);
      if (adapter.nextStatus === "ended") return this.options.leaves(adapter);
      apply(adapter, "left");
      this.options.left(adapter);
    };
    this.options.background.start(away());
  }

  /** Saves an adapter as it is after the steps that all stages have been sent; it trains meanwhile. */
  save(adapter: AdapterState): Promise<void> {
    const saved = this.#save(adapter);
    adapter.saved = saved.catch(() => undefined); // the caller handles its failure
    return saved;
  }

  /** The same of an adapter that trains no further. */
  saveEnded(adapter: AdapterState): Promise<void> {
    return this.#storing.run(() => this.save(adapter));
  }

  async #save(adapter: AdapterState): Promise<void> {
    adapter.saving = true;
    adapter.savedAt = now();
    const { steps } = adapter;
    try {
      await this.store(adapter);
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.options.emit(noticeEvent(adapter.plan, `step ${steps} was not kept: ${textOf(error)}`));
    } finally {
      adapter.saving = false;
    }
  }

  /** Stores an adapter as it is after the steps that all stages have been sent. Throws where it cannot be (`isOwn`). */
  async store(adapter: AdapterState, which?: Which): Promise<void> {
    const { plan, bus, store } = this.options;
    const progress = progressOf(adapter);
    const blocks = await readState(bus, adapter.slot!, adapter.plan.optimizer);
    await store.save(plan, adapter.plan, { progress, blocks }, which);
  }

  /** Frees the slot of an adapter, and its memory on the stages. */
  free(adapter: AdapterState): void {
    const { bus, background } = this.options;
    if (adapter.slot === null) return;
    this.#residency.free(adapter);
    background.start(release(bus, adapter.slot)); // sent now, before another adapter is admitted there
    this.#slots[adapter.slot] = null;
    adapter.slot = null;
  }
}
