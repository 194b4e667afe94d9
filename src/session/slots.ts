// Slots of stages for more adapters than they hold at once: an adapter has one while it is used, and is set aside when another
// needs its memory.
//
// An adapter that is not used gives way at once; one that is used again and again only after its turn, so that adapters which
// share too few slots are not moved at each of their calls.

import { now } from "../base/clock.ts";
import { sum } from "../base/shape.ts";
import { hasRoom, type Room, together } from "../schedule/admission.ts";

/** What has a slot at times. */
export type Resident = {
  slot: number | null;
  /** Bytes that it takes on each stage. */
  readonly bytes: readonly number[];
  /** Calls that use it now. */
  uses: number;
  /** When its last use ended, and when it got its slot. */
  usedAt: number;
  placedAt: number;
  placing: Promise<void> | null;
};

export const resident = (bytes: readonly number[]): Resident => {
  return { slot: null, bytes, uses: 0, usedAt: 0, placedAt: 0, placing: null };
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
  /** An adapter that is in use keeps its slot this long, in ms. */
  readonly turnMs?: number;
};

type Waiting<T> = { readonly of: T; readonly resolve: () => void; readonly reject: (error: unknown) => void };

export class Slots<T extends Resident> {
  readonly #residents: (T | null)[];
  readonly #waiting: Waiting<T>[] = [];
  #moving = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly options: SlotsOptions<T>) {
    this.#residents = Array.from({ length: options.slots }, () => null);
  }

  /** Does the work while the adapter has a slot, for which it may wait. */
  async use<R>(of: T, work: (slot: number) => Promise<R>): Promise<R> {
    of.uses++;
    try {
      while (of.slot === null || of.placing) {
        of.placing ??= this.#place(of);
        await of.placing;
      }
      return await work(of.slot);
    } finally {
      of.uses--;
      of.usedAt = now();
      this.#settle();
    }
  }

  /** Gives up the slot of an adapter that is not in use; what it held is lost. */
  leave(of: T): void {
    const slot = this.#residents.indexOf(of);
    if (slot >= 0) this.#residents[slot] = null;
    of.slot = null;
    this.#settle();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }

  async #place(of: T): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push({ of, resolve, reject });
    this.#settle();
    try {
      await promise;
    } finally {
      of.placing = null;
    }
  }

  get #free(): Room {
    const taken = this.#residents.filter((of) => of !== null);
    const { slots, bytes } = this.options;
    return { slots: slots - taken.length, bytes: bytes.map((all, stage) => all - sum(taken.map((of) => of.bytes[stage]!))) };
  }

  /** Gives room to those that wait, in their order: a small adapter does not overtake a large one. */
  #settle(): void {
    clearTimeout(this.#timer);
    if (this.#moving) return;
    const [next] = this.#waiting;
    if (!next) return;
    if (hasRoom(this.#free, next.of)) {
      this.#waiting.shift();
      this.#move(() => this.#enter(next));
      return;
    }
    const gone = this.#victims(next.of);
    if (typeof gone === "number") this.#timer = setTimeout(() => this.#settle(), gone);
    else if (gone)
      this.#move(async () => {
        for (const of of gone) if (of.uses === 0) await this.#evict(of, next); // it may be used again meanwhile
      });
  }

  /** One adapter moves at a time. */
  #move(work: () => Promise<void>): void {
    this.#moving = true;
    void work().finally(() => {
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
      of.placedAt = now();
      resolve();
    } catch (error) {
      this.#residents[slot] = null;
      reject(error);
    }
  }

  async #evict(of: T, { reject }: Waiting<T>): Promise<void> {
    const slot = of.slot!;
    of.slot = null; // a call that comes now waits
    try {
      await this.options.setAside(of, slot);
      this.#residents[slot] = null;
    } catch (error) {
      this.#waiting.shift();
      reject(error);
    }
  }

  /** The adapters that make room, those first that were used longest ago; or ms until there may be some; null for none. */
  #victims(next: T): T[] | number | null {
    const { idleMs = 100, turnMs = 5000 } = this.options;
    const time = now();
    const unused = this.#residents.filter((of) => of !== null && of.uses === 0 && of.slot !== null) as T[];
    const due = ({ usedAt, placedAt }: T) => Math.min(usedAt + idleMs, placedAt + turnMs) - time;
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
