// Who trains: gives slots to adapters by priority, takes them away again, and keeps those that have none.

import { now } from "../base/clock.ts";
import { textOf } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { Bus } from "../bus/bus.ts";
import type { Plan } from "../plan/plan.ts";
import { admissions } from "../schedule/admission.ts";
import type { Joining } from "../schedule/pipeline.ts";
import { type AdapterState, progressOf, restore } from "./adapter-state.ts";
import type { BackgroundTasks } from "./background.ts";
import { type CheckpointStore, isOwn } from "./checkpoints.ts";
import { type Listener, noticeEvent } from "./events.ts";
import { readState, writeState } from "./export.ts";
import { beginIn } from "./references.ts";

export type SchedulerOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  readonly store: CheckpointStore;
  readonly emit: Listener;
  readonly background: BackgroundTasks;
  /** Aborted: no slot is given any more. */
  readonly stop: AbortSignal;
  readonly suspend: AbortSignal;
  /** Called with an adapter that has its slot and its state, before its next mini-batch; `first` when it is the first time in this run. */
  readonly arrived: (live: AdapterState, first: boolean) => Promise<void>;
  /** Called with an adapter that shall leave, between two of its steps; or that has left, to end. */
  readonly leaves: (live: AdapterState) => void;
  /** Called with an adapter that cannot go on. */
  readonly failed: (live: AdapterState, message: string) => void;
  /** Called with an adapter that has left, and was kept. */
  readonly left: (live: AdapterState) => void;
};

export class AdapterScheduler {
  /** All adapters of the run, by their index. */
  readonly all: AdapterState[] = [];
  /** Those that are to be in the next passes: for the pipeline. */
  readonly joining: Joining[] = [];
  readonly #slots: (AdapterState | null)[];

  constructor(private readonly options: SchedulerOptions) {
    this.#slots = range(options.plan.slots).map(() => null);
  }

  /** More slots are free than adapters wait for. */
  get hasFreeSlot(): boolean {
    const free = this.#slots.filter((who) => who === null).length;
    return free > this.all.filter(({ status }) => status === "waiting").length;
  }

  /** Gives free slots to those that wait, and has others leave for those of a higher priority. */
  settle(): void {
    if (this.options.stop.aborted || this.options.suspend.aborted) return;
    const of = (...standings: readonly AdapterState["status"][]) =>
      this.all.filter(({ status }) => standings.includes(status)).map(candidateOf);
    const free = this.#slots.filter((who) => who === null).length;
    const leaving = this.all.filter(({ status, slot }) => slot !== null && (status === "leaving" || status === "ended"));
    const { admit: next, preempt } = admissions(of("waiting"), of("active", "held"), free, leaving.length);
    for (const adapter of next) this.#admit(this.all[adapter]!);
    for (const adapter of preempt) this.leave(this.all[adapter]!, "waiting");
  }

  /** It trains on, from the step that it has come to; unless it has been asked to leave meanwhile. */
  join(live: AdapterState): void {
    if (live.nextStatus !== "waiting" && !this.options.stop.aborted) {
      this.options.leaves(live);
      return;
    }
    live.status = "active";
    live.steppedAt = now();
    const { index, work, recipe } = live.plan;
    this.joining.push({ adapter: index, work, from: live.steps, priority: recipe.priority });
  }

  /** Gives an adapter a free slot: it comes as it was kept, or as it is before its first step. */
  #admit(live: AdapterState): void {
    const { plan, bus, store, emit, background, arrived } = this.options;
    const slot = this.#slots.indexOf(null);
    this.#slots[slot] = live;
    live.slot = slot;
    live.status = "joining";
    const fill = async (): Promise<void> => {
      const notice = (text: string) => emit(noticeEvent(live.plan, text));
      const kept = store.load(plan, live.plan, notice);
      const { references, made } = live;
      live.references = await beginIn(bus, plan, live.plan, slot, live.data, references, kept !== null, notice, made.model);
      if (kept) {
        restore(live, kept.progress);
        await writeState(bus, slot, kept.blocks);
      }
      const first = !live.known;
      live.known = true;
      live.savedAt = now();
      await arrived(live, first);
    };
    background.start(fill());
  }

  /** Has an adapter that has a slot leave it, at once or when the step under way is made. */
  leave(live: AdapterState, nextStatus: AdapterState["nextStatus"]): void {
    live.nextStatus = nextStatus;
    if (live.status !== "active") return; // who is held or joins is asked when that is over, who leaves when it has left
    live.status = "leaving";
    if (live.begun === live.steps) this.options.leaves(live);
  }

  /** Takes an adapter off the stages, between two of its steps. */
  evict(live: AdapterState): void {
    const { plan, bus, store, background } = this.options;
    const away = async (): Promise<void> => {
      const blocks = await readState(bus, live.slot!);
      try {
        await store.save(plan, live.plan, { progress: progressOf(live), blocks });
      } catch (error) {
        if (!isOwn(error)) throw error;
        this.options.failed(live, `it had to leave its slot after step ${live.steps} and could not be kept: ${textOf(error)}`);
        return;
      }
      this.free(live);
      if (live.nextStatus === "ended") {
        this.options.leaves(live);
        return;
      }
      live.status = live.nextStatus;
      if (live.nextStatus === "rung") live.nextStatus = "waiting";
      this.options.left(live);
    };
    live.status = "leaving";
    background.start(away());
  }

  /** Keeps an adapter as it is after the steps that all stages have been told of; it goes on training. */
  keep(live: AdapterState): Promise<void> {
    const saved = this.#save(live);
    live.kept = saved.catch(() => undefined); // whoever is given `saved` hears of it
    return saved;
  }

  async #save(live: AdapterState): Promise<void> {
    const { plan, bus, store, emit } = this.options;
    live.saving = true;
    live.savedAt = now();
    const progress = progressOf(live);
    try {
      const blocks = await readState(bus, live.slot!);
      await store.save(plan, live.plan, { progress, blocks });
    } catch (error) {
      if (!isOwn(error)) throw error;
      emit(noticeEvent(live.plan, `step ${progress.step} was not kept: ${textOf(error)}`));
    } finally {
      live.saving = false;
    }
  }

  free(live: AdapterState): void {
    if (live.slot !== null) this.#slots[live.slot] = null;
    live.slot = null;
  }
}

const candidateOf = ({ plan, arrived }: AdapterState) => ({ adapter: plan.index, priority: plan.recipe.priority, arrived });
