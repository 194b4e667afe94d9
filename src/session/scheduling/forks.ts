// Copies of adapters that continue under other names: each begins from its adapter's state after a step, which is saved for it.

import { textOf } from "../../base/errors.ts";
import type { Bus } from "../../bus/bus.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import { type CheckpointStore, isOwn, type StoredAdapter } from "../state/checkpoints.ts";
import { readState } from "../state/slot.ts";
import { type AdapterData, type AdapterState, dueForks, endFork, type Fork, madeOf, progressOf } from "./adapter-state.ts";
import type { BackgroundTasks } from "./background.ts";

export type ForksOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  readonly model: string;
  readonly store: CheckpointStore;
  readonly background: BackgroundTasks;
  readonly notice: (adapter: AdapterState, text: string) => void;
  /** Adds a copy to the run, from what is stored under its name; or, `joinAnew`, from its first step. */
  readonly join: (plan: AdapterPlan, data: AdapterData) => void;
  readonly joinAnew: (plan: AdapterPlan, data: AdapterData) => void;
  /** Admits adapters that may have a slot now. */
  readonly settle: () => void;
};

export class Forks {
  constructor(private readonly options: ForksOptions) {}

  /** Makes the copies that are due of an adapter's present state. */
  make(adapter: AdapterState): void {
    for (const fork of dueForks(adapter)) this.options.background.start(this.#fork(adapter, fork));
  }

  /** The same for an adapter without a slot, from its checkpoint; a copy of one that has made no step begins anew. */
  makeSaved(adapter: AdapterState): void {
    const { plan, store, notice, background, joinAnew } = this.options;
    for (const fork of dueForks(adapter)) {
      const stored = store.load(plan, adapter.plan, (text) => notice(adapter, text));
      if (stored) background.start(this.#fork(adapter, fork, stored));
      else if (fork.after === 0) {
        joinAnew(fork.plan, fork.data);
        endFork(adapter, fork);
      } else this.#unmade(adapter, fork, "it was not kept");
    }
  }

  /** Gives up the copies of an adapter that makes no further step. */
  end(adapter: AdapterState): void {
    for (const fork of adapter.forks.filter(({ isMade }) => !isMade))
      this.#unmade(adapter, fork, `its last step is ${adapter.steps}`);
  }

  /** A copy begins from the adapter's present state, which is saved under the copy's name. */
  async #fork(adapter: AdapterState, fork: Fork, stored?: StoredAdapter): Promise<void> {
    const { plan, bus, model, store, join, settle } = this.options;
    const { plan: copy, data } = fork;
    const made = madeOf(plan, copy, data, model);
    const progress = { ...(stored?.progress ?? progressOf(adapter)), adapter: copy.name, made, best: null };
    try {
      const blocks = stored?.blocks ?? (await readState(bus, adapter.slot!, adapter.plan.optimizer));
      store.remove(copy);
      await store.save(plan, copy, { progress, blocks });
      join(copy, data);
      endFork(adapter, fork);
      settle();
    } catch (error) {
      if (!isOwn(error)) throw error;
      this.#unmade(adapter, fork, textOf(error));
    }
  }

  #unmade(adapter: AdapterState, fork: Fork, why: string): void {
    endFork(adapter, fork);
    this.options.notice(adapter, `the copy ${fork.plan.name} was not made: ${why}`);
  }
}
