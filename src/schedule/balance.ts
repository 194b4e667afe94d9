// Which micro-batches share a pass, for a pipeline: passes alike in rows, and enough of them to keep every stage busy.
//
// A pipeline needs passes that do not depend on each other. With D stages, and n micro-batches in a mini-batch, groups of adapters
// that share their passes fill it when (groups - 1) n >= D - 1: while a group waits for its last backward, the others' passes
// are on the way. Filling each pass to `passRows`, as one stage does, would leave too few; so would passes of unequal size
// leave stages waiting for each other.

import { sum } from "../base/shape.ts";
import type { Kind, Pass } from "./lists.ts";
import { paddedRows, type ShareRef, sharesOf } from "./shares.ts";
import { stepsPerEpoch, totalSteps, type Work } from "./steps.ts";

export type Limits = {
  /** Tokens of an adapter's own micro-batch; decides its sums, so it may depend on nothing but the recipe. */
  readonly budget: number;
  /** Rows of a pass at most; a larger micro-batch runs alone. */
  readonly passRows: number;
  readonly rowTile: number;
  /**
   * tokens: passes alike in size, enough for all stages. filled: up to `passRows` in the order in which adapters are ready.
   * alone: one adapter a pass.
   */
  readonly packing: "tokens" | "filled" | "alone";
};

type Member = {
  readonly adapter: number;
  readonly work: Work;
  readonly shares: Generator<ShareRef>;
  /** The next micro-batch, or null when none is left. */
  next: ShareRef | null;
  rows: number;
  /** When the first stage may begin it. */
  ready: number;
  readonly steps: number;
  /** Micro-batches of a mini-batch and rows of a micro-batch, on average. */
  readonly cuts: number;
  readonly meanRows: number;
};

/** The adapters that have work left, and which of them the first stage may begin. */
export class Pool {
  #members: Member[] = [];
  #joined = 0;

  constructor(
    readonly works: readonly Work[],
    readonly options: Limits & {
      readonly kind: Kind;
      readonly stages: number;
      readonly ended?: (adapter: number) => boolean;
    },
  ) {}

  /** When the first stage may begin another pass; Infinity while none can be begun. */
  readyAt(): number {
    this.#letIn();
    this.#letGo();
    let at = Number.POSITIVE_INFINITY;
    for (const { ready } of this.#eligible()) at = Math.min(at, ready);
    return at;
  }

  /** The shares of the next pass, from adapters that are ready at `now`; there must be one. */
  take(now: number): Omit<Pass, "id"> {
    const ready = this.#eligible().filter((member) => member.ready <= now);
    const chosen = this.#choose(ready.sort((a, b) => this.#before(a, b)));
    const pass = { shares: chosen.map(({ next }) => next!), rows: sum(chosen.map(({ rows }) => rows)) };
    for (const member of chosen) {
      if (member.next!.last) member.ready = Number.POSITIVE_INFINITY; // until it is released
      this.#advance(member);
    }
    return pass;
  }

  /** The adapter's mini-batch is done on all stages at `at`: it may step, and then begin its next. */
  release(adapter: number, at: number): void {
    for (const member of this.#members) if (member.adapter === adapter) member.ready = at;
  }

  /** Works are only ever added, so who joined is beyond those seen. */
  #letIn(): void {
    const { budget } = this.options;
    for (; this.#joined < this.works.length; this.#joined++) {
      const adapter = this.#joined;
      const work = this.works[adapter]!;
      const miniBatch = sum(work.lengths) / stepsPerEpoch(work);
      const cuts = Math.max(work.accumulation, Math.ceil(miniBatch / budget));
      const shares = sharesOf(adapter, work, budget);
      const about = { steps: totalSteps(work), cuts, meanRows: miniBatch / cuts };
      const member: Member = { adapter, work, shares, next: null, rows: 0, ready: 0, ...about };
      this.#advance(member);
      this.#members.push(member);
    }
  }

  /** A mini-batch that was begun is finished, also where its adapter has ended. */
  #letGo(): void {
    const { ended } = this.options;
    const done = ({ adapter, next, ready }: Member): boolean =>
      (next === null && ready < Number.POSITIVE_INFINITY) || (next?.firstRow === 0 && ended?.(adapter) === true);
    if (this.#members.some(done)) this.#members = this.#members.filter((member) => !done(member));
  }

  #advance(member: Member): void {
    const { value, done } = member.shares.next();
    member.next = done ? null : value;
    member.rows = done ? 0 : paddedRows(member.work, value, this.options.rowTile);
  }

  #eligible(): Member[] {
    const members = this.options.kind === "lorapp" ? this.#members : this.#members.slice(0, 1);
    return members.filter(({ next }) => next !== null);
  }

  /** A mini-batch that was begun goes first, so that its adapter may step soon; then who has the longest way to go. */
  #before(a: Member, b: Member): number {
    const begun = Number(b.next!.firstRow > 0) - Number(a.next!.firstRow > 0);
    if (begun !== 0) return begun;
    if (this.options.packing === "tokens") {
      const way = this.#way(b) - this.#way(a);
      if (way !== 0) return way;
    }
    return a.ready - b.ready || a.adapter - b.adapter;
  }

  /** Passes that must follow each other until the adapter is done. */
  #way({ steps, next, cuts }: Member): number {
    return (steps - next!.step) * (this.options.stages - 1 + cuts);
  }

  /** From candidates in order of preference, the first always among them. */
  #choose(candidates: readonly Member[]): Member[] {
    const { kind, packing, passRows } = this.options;
    if (kind !== "lorapp" || packing === "alone") return [candidates[0]!];
    if (packing === "filled") {
      let rows = 0;
      return candidates.filter((member, i) => {
        if (i > 0 && rows + member.rows > passRows) return false;
        rows += member.rows;
        return true;
      });
    }
    return closest(candidates, this.#target(), passRows);
  }

  /** Rows that a pass should have. */
  #target(): number {
    const { stages, passRows } = this.options;
    if (stages === 1) return passRows;
    const active = this.#members.filter(({ next }) => next !== null);
    const each = sum(active.map(({ meanRows }) => meanRows)) / active.length;
    const cuts = sum(active.map((of) => of.cuts)) / active.length;
    const groups = 1 + stages / cuts;
    const adapters = Math.max(1, Math.floor(active.length / groups));
    return Math.min(passRows, each * adapters);
  }
}

/**
 * The candidates whose rows together come closest to `target` and not over `most`, the first of them always among them; of
 * equally close sets, one of earlier candidates.
 */
export function closest<T extends { readonly rows: number }>(candidates: readonly T[], target: number, most: number): T[] {
  const first = candidates[0]!;
  const room = Math.max(0, Math.floor(Math.min(most, 2 * target)) - first.rows);
  // by[n]: the candidate that completes a sum of n rows beside the first, and so leads back through the others
  const by = new Map<number, number>([[0, 0]]);
  for (const [i, { rows }] of candidates.entries()) {
    if (i === 0) continue;
    for (const reached of [...by.keys()]) {
      const total = reached + rows;
      if (total <= room && !by.has(total)) by.set(total, i);
    }
  }
  let best = 0;
  for (const total of by.keys()) if (Math.abs(first.rows + total - target) < Math.abs(first.rows + best - target)) best = total;
  const chosen = [first];
  for (let left = best; left > 0; ) {
    const member = candidates[by.get(left)!]!;
    chosen.push(member);
    left -= member.rows;
  }
  return chosen;
}
