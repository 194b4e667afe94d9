// Which adapters are on the devices, where more train than fit there. The others wait in host memory for their turn
// (schedule/turns.ts); stages copy them while others train.

import { log } from "../../base/log.ts";
import { maxOf, range, sum } from "../../base/shape.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import { leaving, type Resident, stepsOfTurn } from "../../schedule/turns.ts";
import type { AdapterState } from "./adapter-state.ts";

export type ResidencyOptions = {
  readonly bus: Bus;
  /** Bytes of adapters that each stage has room for on its device. */
  readonly room: readonly number[];
  readonly bytesOf: (adapter: AdapterState) => readonly number[];
  /** Milliseconds that a step of one adapter takes of the devices; null before there is one. */
  readonly msPerStep: () => number | null;
};

type Entry = {
  readonly adapter: AdapterState;
  readonly isFetched: boolean;
  readonly isFirst: boolean;
  readonly settle: (isHere: boolean) => void;
};

/** Weight of earlier copies in the smoothed time of one. */
const SMOOTHING = 0.9;

export class Residency {
  /** Adapters with room on the devices, those on their way there or away included. */
  readonly #here = new Set<AdapterState>();
  /** Of these, those that give up their room: after the step under way, or when they are copied. */
  readonly #leaving = new Set<AdapterState>();
  /** Those that wait, in their order. */
  readonly #queue: Entry[] = [];
  /** Milliseconds of a copy either way. */
  #copyMs: number | null = null;
  /** Of the last turn that was ended. */
  #steps = 0;
  #isClosed = false;

  constructor(private readonly options: ResidencyOptions) {}

  isHere(adapter: AdapterState): boolean {
    return this.#here.has(adapter);
  }

  isWaiting(adapter: AdapterState): boolean {
    return this.#queue.some((entry) => entry.adapter === adapter);
  }

  /**
   * Waits for room on the devices, and has an adapter that is in host memory copied there; false where the wait was given up.
   * `isFirst`: before all others of its priority.
   */
  enter(adapter: AdapterState, { isFetched, isFirst = false }: { isFetched: boolean; isFirst?: boolean }): Promise<boolean> {
    if (this.#here.has(adapter)) return Promise.resolve(true);
    if (this.#isClosed && !isFirst) return Promise.resolve(false);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const { priority } = adapter.plan.recipe;
    const comesAfter = ({ adapter: other }: Entry) => other.plan.recipe.priority < priority + Number(isFirst);
    const at = this.#queue.findIndex(comesAfter);
    const entry = { adapter, isFetched, isFirst, settle: resolve };
    this.#queue.splice(at < 0 ? this.#queue.length : at, 0, entry);
    this.#serve();
    return promise.then(async (isHere) => {
      if (!isHere || !this.#here.has(adapter)) return false; // it may have been freed meanwhile
      if (isFetched) await this.#copy("fetch", adapter);
      return true;
    });
  }

  /** Copies an adapter that is between two steps to host memory; resolves when its room is another's. */
  async leave(adapter: AdapterState): Promise<void> {
    this.#leaving.add(adapter);
    await this.#copy("offload", adapter);
    if (this.#leaving.delete(adapter)) this.#forget(adapter);
  }

  /** Adapters, of these, whose turn is over while others wait: each is to call `leave` as soon as it is between steps. */
  endTurns(training: readonly AdapterState[]): AdapterState[] {
    if (this.#queue.length === 0) return [];
    const { bytesOf, msPerStep } = this.options;
    const queue = this.#queue.map(({ adapter }) => ({ priority: adapter.plan.recipe.priority, bytes: bytesOf(adapter) }));
    const residents = training.flatMap((adapter): Resident | [] => {
      const made = (adapter.step?.step ?? adapter.steps) - adapter.turnFrom;
      const { index, recipe } = adapter.plan;
      if (!this.#here.has(adapter) || this.#leaving.has(adapter)) return [];
      return { adapter: index, priority: recipe.priority, bytes: bytesOf(adapter), made };
    });
    const free = this.#free.map((bytes, stage) => bytes + sum([...this.#leaving].map((of) => bytesOf(of)[stage]!)));
    const found = leaving(queue, residents, free, this.#stepsOfTurn(msPerStep()));
    const ended = training.filter(({ plan }) => found.includes(plan.index));
    for (const adapter of ended) this.#leaving.add(adapter);
    return ended;
  }

  #stepsOfTurn(stepMs: number | null): number {
    const steps = stepsOfTurn(this.#copyMs, stepMs);
    if (steps !== this.#steps) {
      const ms = (of: number | null) => (of === null ? "not measured" : `${of.toFixed(1)} ms`);
      log(1, () => `a turn has ${steps} steps: a copy takes ${ms(this.#copyMs)}, a step's share of the devices ${ms(stepMs)}`);
      this.#steps = steps;
    }
    return steps;
  }

  /** An adapter trains further in its turn. */
  stay(adapter: AdapterState): void {
    this.#leaving.delete(adapter);
  }

  /** An adapter has no slot any more, or waits no longer. */
  free(adapter: AdapterState): void {
    this.cancel(adapter);
    this.#leaving.delete(adapter);
    this.#forget(adapter);
  }

  /** Gives up an adapter's wait. */
  cancel(adapter: AdapterState): void {
    const at = this.#queue.findIndex((entry) => entry.adapter === adapter);
    if (at >= 0) this.#queue.splice(at, 1)[0]!.settle(false);
  }

  /** Gives up all waits, now and later; `exceptFirst`: but not of adapters that come before others. */
  close(exceptFirst: boolean): void {
    this.#isClosed = true;
    for (const { settle } of this.#queue.filter(({ isFirst }) => !(exceptFirst && isFirst))) settle(false);
    this.#queue.splice(0, this.#queue.length, ...this.#queue.filter(({ isFirst }) => exceptFirst && isFirst));
    this.#serve();
  }

  get #free(): number[] {
    const { room, bytesOf } = this.options;
    const taken = [...this.#here].map(bytesOf);
    return room.map((bytes, stage) => bytes - sum(taken.map((of) => of[stage]!)));
  }

  #forget(adapter: AdapterState): void {
    if (this.#here.delete(adapter)) this.#serve();
  }

  /** Gives room to those that have waited longest. */
  #serve(): void {
    if (this.#queue.length === 0) return;
    const { bytesOf } = this.options;
    const free = this.#free;
    for (let first = this.#queue[0]; first; first = this.#queue[0]) {
      const bytes = bytesOf(first.adapter);
      if (!bytes.every((needed, stage) => needed <= free[stage]!)) return;
      for (const stage of range(free.length)) free[stage]! -= bytes[stage]!;
      this.#queue.shift();
      this.#here.add(first.adapter);
      first.adapter.turnFrom = first.adapter.steps;
      first.settle(true);
    }
  }

  async #copy(way: "offload" | "fetch", { slot }: AdapterState): Promise<void> {
    const replies = await requestAll(this.options.bus, { type: way, slot: slot! });
    const ms = maxOf(replies.map((reply) => reply.ms));
    this.#copyMs = this.#copyMs === null ? ms : SMOOTHING * this.#copyMs + (1 - SMOOTHING) * ms;
  }
}
