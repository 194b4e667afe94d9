// Whose pass is next where training and generation share stages: each has half of the time while both have work, whatever a
// pass of each takes. A token is a short pass and waits for a training pass at most; training does not wait for all tokens.

import { now, sleep } from "../../base/clock.ts";

export type PassKind = "training" | "generation";

/** In this time a kind that has ended a pass asks for its next, in ms. */
const GRACE_MS = 1;

export class PassTurns {
  /** Time that the passes of each have taken since both had work, in ms. */
  readonly #taken: Record<PassKind, number> = { training: 0, generation: 0 };
  readonly #waiting: Record<PassKind, (() => void)[]> = { training: [], generation: [] };
  /** The kind whose passes are under way; null for none. */
  #kind: PassKind | null = null;
  /** The kind whose turn it is, which may ask within the grace. */
  #next: PassKind | null = null;
  /** The kind whose passes ended last. */
  #last: PassKind | null = null;
  #underway = 0;
  #since = 0;

  constructor(private readonly clock: () => number = now) {}

  /**
   * Waits until the stages are free for passes of a kind; until the turn is disposed of, none of the other kind are sent.
   * `waits` is called where it has to wait.
   */
  async take(kind: PassKind, waits?: () => void): Promise<Disposable> {
    if (this.#mayBegin(kind)) this.#begin(kind);
    else {
      waits?.();
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting[kind].push(resolve);
      await promise;
    }
    return { [Symbol.dispose]: () => this.#end() };
  }

  /** Whether the other kind waits, or had the stages just before: then a pass beyond the turn would take of its time. */
  isShared(kind: PassKind): boolean {
    const other = otherOf(kind);
    return this.#last === other || this.#waiting[other].length > 0;
  }

  /** Passes of one kind may follow each other while none of the other kind waits. */
  #mayBegin(kind: PassKind): boolean {
    if (this.#kind === null) return this.#next === null || this.#next === kind;
    return this.#kind === kind && this.#waiting[otherOf(kind)].length === 0;
  }

  #begin(kind: PassKind): void {
    if (this.#kind === null) this.#since = this.clock();
    this.#kind = kind;
    this.#next = null;
    this.#underway++;
  }

  #end(): void {
    if (--this.#underway > 0) return;
    const kind = this.#kind!;
    const other = otherOf(kind);
    this.#taken[kind] += this.clock() - this.#since;
    this.#kind = null;
    this.#last = kind;
    const isShared = this.#waiting[other].length > 0;
    // What one has taken while the other had no work counts for nothing.
    if (!isShared) this.#taken[other] = this.#taken[kind];
    const next = isShared && this.#taken[other] <= this.#taken[kind] ? other : kind;
    if (this.#resume(next) || !isShared) return;
    this.#next = next;
    void sleep(GRACE_MS).then(() => {
      if (this.#next !== next) return; // it has begun
      this.#next = null;
      this.#resume(otherOf(next));
    });
  }

  /** Begins the pass of a kind that waits; false where none does. */
  #resume(kind: PassKind): boolean {
    const resolve = this.#waiting[kind].shift();
    if (!resolve) return false;
    this.#begin(kind);
    resolve();
    return true;
  }
}

const otherOf = (kind: PassKind): PassKind => (kind === "training" ? "generation" : "training");
