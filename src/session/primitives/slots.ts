// Slots of stages for more adapters than they hold at once: an adapter has one while it is used, and is set aside when another
// needs its memory.
//
// An adapter that is not used gives way at once; one that is used again and again only after its turn, so that adapters which
// share too few slots are not moved at each of their calls. Turns go by the shares of the adapters' owners: an owner of forty
// adapters has no more of them than one of two.

import { now } from "../../base/clock.ts";
import { sum } from "../../base/shape.ts";
import { hasRoom, type Room, together } from "../../schedule/admission.ts";
import { Shares } from "../decoding/shares.ts";

/** What has a slot at times. */
export type Resident = {
  slot: number | null;
  /** By whose share it has its turns. */
  readonly owner: string;
  /** Bytes that it takes on each stage. */
  readonly bytes: readonly number[];
  /** Calls that use it now, and that wait for its slot. */
  uses: number;
  queued: number;
  /** When its last use ended, and when it got its slot. */
  usedAt: number;
  placedAt: number;
  placing: Promise<void> | null;
  /** While it is being set aside. */
  leaving: Promise<void> | null;
};

export const resident = (bytes: readonly number[], owner = ""): Resident => {
  return { slot: null, owner, bytes, uses: 0, queued: 0, usedAt: 0, placedAt: 0, placing: null, leaving: null };
};

export type SlotsOptions<T extends Resident> = {
  readonly slots: number;
  /** Bytes for adapters on each stage. */
  readonly bytes: readonly number[];
  /** Fills the slot that the adapter has got. */
  readonly fill: (of: T, slot: number) => Promise<void>;
  /** Keeps what is in the slot and releases its memory. */
  readonly setAside: (of: T, slot: number) => Promise<void>;
  /** After an adapter was used for the last time, until another may have its slot, in ms. */
  readonly idleMs?: number;
  /**
   * An adapter that is used again and again keeps its slot this long where others wait, in ms; left out, so long that moving
   * adapters takes a small share of the time.
   */
  readonly turnMs?: number;
  /** Left out, owners have equal shares of the turns. */
  readonly shares?: Shares;
};

const IDLE_MS = 100;
/** A turn as a multiple of what a move takes, and its bounds in ms. */
const [MOVES, LEAST_MS, MOST_MS] = [20, 100, 5000];
/** Weight of the earlier moves in the smoothed time of one. */
const SMOOTHING = 0.8;

type Waiting<T> = { readonly of: T; readonly resolve: () => void; readonly reject: (error: unknown) => void };

export class Slots<T extends Resident> {
  readonly #residents: (T | null)[];
  readonly #waiting: Waiting<T>[] = [];
  readonly #shares: Shares;
  #moving = false;
  /** What giving a slot to another adapter takes, smoothed. */
  #moveMs = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly options: SlotsOptions<T>) {
    this.#residents = Array.from({ length: options.slots }, () => null);
    this.#shares = options.shares ?? new Shares();
  }

  /** What each slot has; null where it is free. */
  get residents(): readonly (T | null)[] {
    return this.#residents;
  }

  /** Does the work while the adapter has a slot, for which it may wait. */
  async use<R>(of: T, work: (slot: number) => Promise<R>): Promise<R> {
    if (of.slot !== null && !of.placing && !this.#isOver(of)) of.uses++;
    else {
      of.queued++;
      of.placing ??= this.#place(of);
      await of.placing; // from then on it counts as used
    }
    return await this.#using(of, () => work(of.slot!));
  }

  /** Work of a call that counts as a use already: meanwhile the adapter keeps its slot. */
  async #using<R>(of: T, work: () => Promise<R>): Promise<R> {
    try {
      return await work();
    } finally {
      of.uses--;
      of.usedAt = now();
      this.#shares.add(of.owner, 1);
      this.#settle();
    }
  }

  /** Gives up the slot of an adapter for which no call is open; `empty` releases the memory, and what it held is lost. */
  async leave(of: T, empty: (slot: number) => Promise<unknown>): Promise<void> {
    await of.leaving;
    const { slot } = of;
    if (slot === null) return;
    of.uses++;
    await this.#using(of, async () => {
      await empty(slot);
      this.#residents[slot] = null;
      of.slot = null;
    });
  }

  /** Whether others wait, and it has had its turn: calls that come now wait, too, so that it is not in use at last. */
  #isOver({ placedAt }: T): boolean {
    return this.#waiting.length > 0 && now() - placedAt > this.#turnMs;
  }

  get #turnMs(): number {
    return this.options.turnMs ?? Math.min(MOST_MS, Math.max(LEAST_MS, MOVES * this.#moveMs));
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }

  #place(of: T): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const over = (uses: number) => {
      of.placing = null;
      of.uses += uses;
      of.queued = 0;
    };
    this.#waiting.push({
      of,
      resolve: () => {
        of.placedAt = now();
        over(of.queued);
        resolve();
      },
      reject: (error) => {
        over(0);
        reject(error);
      },
    });
    queueMicrotask(() => this.#settle());
    return promise;
  }

  get #free(): Room {
    const taken = this.#residents.filter((of) => of !== null);
    const { slots, bytes } = this.options;
    return { slots: slots - taken.length, bytes: bytes.map((all, stage) => all - sum(taken.map((of) => of.bytes[stage]!))) };
  }

  /** It has its turn, or will never have it. */
  #admit(next: Waiting<T>): void {
    this.#waiting.splice(this.#waiting.indexOf(next), 1);
    this.#shares.charge(next.of.owner, 1);
  }

  /**
   * Gives room to those that wait, by the shares of their owners and in the order of each: of one owner, a small adapter does
   * not overtake a large one.
   */
  #settle(): void {
    clearTimeout(this.#timer);
    if (this.#moving) return;
    const next = this.#shares.inTurn(this.#waiting, ({ of }) => of.owner).next().value;
    if (!next) return;
    if (next.of.slot !== null) {
      this.#admit(next); // it was not set aside meanwhile, and has another turn
      next.resolve();
      this.#settle();
      return;
    }
    if (hasRoom(this.#free, next.of)) {
      this.#admit(next);
      this.#move(() => this.#enter(next));
      return;
    }
    const gone = this.#victims(next.of);
    if (typeof gone === "number") this.#timer = setTimeout(() => this.#settle(), gone);
    else if (gone)
      this.#move(async () => {
        // One that is used again meanwhile stays, and one may have left.
        for (const of of gone) if (of.uses === 0 && of.slot !== null) await this.#evict(of, next);
      });
  }

  /** One adapter moves at a time. */
  #move(work: () => Promise<void>): void {
    this.#moving = true;
    const began = now();
    void work().finally(() => {
      this.#moveMs = SMOOTHING * this.#moveMs + 2 * (1 - SMOOTHING) * (now() - began); // one comes, another has gone
      this.#moving = false;
      this.#settle();
    });
  }

  async #enter({ of, resolve, reject }: Waiting<T>): Promise<void> {
    const slot = this.#residents.indexOf(null);
    this.#residents[slot] = of;
    try {
      await this.options.fill(of, slot);
      of.slot = slot;
      resolve();
    } catch (error) {
      this.#residents[slot] = null;
      reject(error);
    }
  }

  async #evict(of: T, next: Waiting<T>): Promise<void> {
    const slot = of.slot!;
    of.slot = null; // a call that comes now waits
    of.leaving = this.options.setAside(of, slot);
    try {
      await of.leaving;
      this.#residents[slot] = null;
    } catch (error) {
      this.#admit(next);
      next.reject(error);
    } finally {
      of.leaving = null;
    }
  }

  /** The adapters that make room, those first that were used longest ago; or ms until there may be some; null for none. */
  #victims(next: T): T[] | number | null {
    const { idleMs = IDLE_MS } = this.options;
    const time = now();
    const unused = this.#residents.filter((of) => of !== null && of.uses === 0 && of.slot !== null) as T[];
    const due = ({ usedAt, placedAt }: T) => Math.min(usedAt + idleMs, placedAt + this.#turnMs) - time;
    const gone: T[] = [];
    let room = this.#free;
    for (const of of unused.filter((of) => due(of) <= 0).sort((a, b) => a.usedAt - b.usedAt)) {
      gone.push(of);
      room = together(room, { slots: 1, bytes: of.bytes });
      if (hasRoom(room, next)) return gone;
    }
    return unused.length > gone.length ? Math.max(1, Math.min(...unused.map(due).filter((ms) => ms > 0))) : null;
  }
}
