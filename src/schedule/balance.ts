// Which micro-batches share a pass of a pipeline: passes alike in rows, and enough of them to keep every stage busy.
//
// A stage by itself fills each pass. A pipeline needs several that do not depend on each other, and waits where one is much
// larger than the next. So a pass has a target size, and those adapters share it whose next micro-batches together come
// closest.

import { sum } from "../base/shape.ts";
import { type GradientNeeds, GradientRoom } from "./gradients.ts";
import type { Limits, PackedBatch, ScheduleKind } from "./lists.ts";
import { paddedRows, type SegmentRef, segmentsOf } from "./segments.ts";
import { epochTokens, stepsPerEpoch, totalSteps, type Work } from "./steps.ts";

/**
 * Of the passes that there could be at a time, the share that is left out so that unequal ones do not make stages wait
 * (docs/measurements/schedule.md).
 */
const SPARE = 0.35;
/** No pass is larger than this times its target: it would hold up the others, and memory is taken for the largest. */
const MOST_OVER = 1.25;
/** Starvation limit: times that an adapter with the shorter way may be skipped, for each adapter that there is. */
const PATIENCE = 2;
/** A pass has at most as many micro-batches as this times those of the smallest adapter's mean size. */
const MOST_UNEVEN = 1.25;
/** More candidates than this are not tried together. */
const MOST_CANDIDATES = 24;

/**
 * balanced: passes of about equal size, as large as keeps all stages busy. filled: up to `passRows`, in the order in which
 * adapters are ready, as one stage does it. alone: one adapter a pass, as in the paper.
 */
export type Packing = "balanced" | "filled" | "alone";

export type PoolOptions = {
  readonly kind: ScheduleKind;
  readonly packing: Packing;
  readonly passRows: number;
  /** Passes of an adapter's mini-batch go through this many stages before it may step. */
  readonly stages: number;
  /** Left out, any number of adapters may be in a step. */
  readonly gradients?: GradientNeeds;
};

/** An adapter with work left. */
export type Member = {
  readonly adapter: number;
  readonly segments: Iterator<SegmentRef>;
  readonly rowsOf: (segment: SegmentRef) => number;
  readonly steps: number;
  readonly priority: number;
  /** Micro-batches of a mini-batch, and padded rows of a micro-batch, on average. */
  readonly cuts: number;
  readonly meanRows: number;
  /** The next micro-batch and its padded rows; null when none is left. */
  next: SegmentRef | null;
  rows: number;
  /** When the first stage may begin it: Infinity while a step has to come first. */
  ready: number;
  /** Passes that were begun without it since it could have been in them. */
  passed: number;
};

/** What a pool is given of an adapter. */
type Entry = Omit<Member, "next" | "rows" | "ready" | "passed">;

/** An adapter that joins, with its micro-batches from step `from` on. */
export function memberOf(
  adapter: number,
  work: Work,
  from: number,
  { tokensPerMicrobatch, rowTile }: Limits,
  priority = 0,
): Entry {
  const miniBatch = epochTokens(work) / stepsPerEpoch(work);
  const cuts = Math.max(work.accumulation, Math.ceil(miniBatch / tokensPerMicrobatch));
  const rowsOf = (segment: SegmentRef) => paddedRows(work, segment, rowTile);
  const meanRows = miniBatch / cuts + rowTile / 2;
  const segments = segmentsOf(adapter, work, tokensPerMicrobatch, from);
  return { adapter, segments, rowsOf, steps: totalSteps(work), priority, cuts, meanRows };
}

/** The adapters that have work left, and which of them the first stage begins next. */
export class Pool {
  readonly #members: Member[] = [];
  readonly #gradients: GradientRoom;
  /** Those that may be in the next pass, and those that have work left; null after a change. */
  #known: readonly Member[] | null = null;
  #waiting: readonly Member[] | null = null;

  constructor(readonly options: PoolOptions) {
    this.#gradients = new GradientRoom(options.gradients ?? null);
  }

  /** Those that have micro-batches left to give; the same list until that changes. */
  get waiting(): readonly Member[] {
    this.#waiting ??= this.#members.filter(({ next }) => next !== null);
    return this.#waiting;
  }

  #changed(): void {
    this.#known = null;
    this.#waiting = null;
  }

  /** Adds an adapter from one of its steps on; replaces what is here of one that left and came back since the last `sift`. */
  add(entry: Entry): void {
    const known = this.#members.findIndex(({ adapter }) => adapter === entry.adapter);
    if (known >= 0) this.#members.splice(known, 1);
    const added = { ...entry, next: null, rows: 0, ready: 0, passed: 0 };
    advance(added);
    if (added.next) this.#members.push(added);
    this.#changed();
  }

  /** Lets go of those that are done, and of those that have `left`; a mini-batch that was begun is finished all the same. */
  sift(left: (adapter: number) => boolean): void {
    const stays = ({ adapter, next, ready }: Member): boolean =>
      next === null ? ready === Number.POSITIVE_INFINITY : next.firstRow > 0 || !left(adapter);
    let kept = 0;
    for (const member of this.#members) if (stays(member)) this.#members[kept++] = member;
    if (kept === this.#members.length) return;
    this.#members.length = kept;
    this.#changed();
  }

  /** When the first stage may begin another pass; Infinity while none can be begun. */
  readyAt(): number {
    let at = Number.POSITIVE_INFINITY;
    for (const { ready } of this.#eligible()) at = Math.min(at, ready);
    return at;
  }

  /** Whether another adapter than these is ready at `now`. */
  hasOther(now: number, adapters: ReadonlySet<number>): boolean {
    return this.#eligible().some(({ adapter, ready }) => ready <= now && !adapters.has(adapter));
  }

  /** Whether a pass of one micro-batch leaves one that needs no step first. */
  leavesWork(): boolean {
    let ready = 0;
    for (const member of this.#eligible())
      if (member.ready < Number.POSITIVE_INFINITY && (!member.next!.last || ++ready > 1)) return true;
    return false;
  }

  /**
   * The shares of the next pass, of about `target` rows, from adapters that are ready at `now` and none of `undecided`; there
   * must be one.
   */
  take(now: number, target: number, undecided: ReadonlySet<number> = new Set()): Omit<PackedBatch, "id"> {
    const mayBe = ({ adapter, ready }: Member) => ready <= now && !undecided.has(adapter);
    const waiting = this.waiting.filter(mayBe);
    const ready = this.#eligible().filter(mayBe);
    const chosen = this.#choose(ready, target);
    for (const { adapter } of chosen) this.#gradients.take(adapter);
    const pass = { segments: chosen.map(({ next }) => next!), rows: sum(chosen.map(({ rows }) => rows)) };
    for (const member of waiting) member.passed++;
    for (const member of chosen) {
      member.passed = 0;
      if (member.next!.last) member.ready = Number.POSITIVE_INFINITY;
      advance(member);
      if (!member.next) this.#waiting = null;
    }
    this.#known = null;
    return pass;
  }

  /** The adapter steps before all that begins from now on: its gradients make room. */
  stepped(adapter: number): void {
    this.#gradients.release(adapter);
    this.#known = null;
  }

  /** The adapter's mini-batch is done on all stages at `at`: it may step, and then begin its next. */
  release(adapter: number, at: number): void {
    for (const member of this.#members) if (member.adapter === adapter) member.ready = at;
  }

  /** Looked at several times between two changes. */
  #eligible(): readonly Member[] {
    if (this.#known) return this.#known;
    const members = this.options.kind === "lorapp" ? this.#members : this.#members.slice(0, 1);
    const { fits } = this.#gradients.selection();
    this.#known = members.filter(({ next, adapter }) => next !== null && fits(adapter));
    return this.#known;
  }

  /**
   * A mini-batch that was begun goes first, so that its adapter may step soon; then a higher priority; then one that has been
   * skipped many times; then one that has the longest way to go.
   */
  #before(a: Member, b: Member): number {
    const begun = Number(b.next!.firstRow > 0) - Number(a.next!.firstRow > 0);
    if (begun !== 0) return begun;
    if (a.priority !== b.priority) return b.priority - a.priority;
    const starved = ({ passed }: Member) => Number(passed > PATIENCE * this.#members.length);
    if (starved(a) !== starved(b)) return starved(b) - starved(a);
    const way = this.options.packing === "balanced" ? this.#way(b) - this.#way(a) : 0;
    return way || a.ready - b.ready || a.adapter - b.adapter;
  }

  /** Passes that must follow each other until the adapter is done: however many stages there are, its steps cannot overlap. */
  #way({ steps, next, cuts }: Member): number {
    return (steps - next!.step) * (this.options.stages - 1 + cuts);
  }

  /** The most preferred of these candidates is always among those chosen; reorders them. */
  #choose(candidates: Member[], target: number): Member[] {
    const { kind, packing, passRows } = this.options;
    const only = kind !== "lorapp" || packing === "alone";
    const most = only ? 1 : packing === "filled" ? Number.POSITIVE_INFINITY : MOST_CANDIDATES;
    const least = packing === "filled" ? Math.min(...new Set(candidates.map((member) => member.rows))) : 0;
    const { fits, add, isFull } = this.#gradients.selection();
    const chosen: Member[] = [];
    let rows = 0;
    const choose = (left: Member[], wasFull: boolean): void => {
      for (const member of inOrder(left, (a, b) => this.#before(a, b))) {
        if (packing === "filled" && chosen.length > 0 && rows + member.rows > passRows) continue;
        if (!fits(member.adapter)) continue;
        add(member.adapter);
        rows += member.rows;
        chosen.push(member);
        // Of those that are left, which may be many, none or few could be in it as well.
        if (chosen.length === most || (packing === "filled" && rows + least > passRows)) return;
        if (wasFull || !isFull()) continue;
        const begun = left.filter(({ adapter }) => fits(adapter));
        choose(begun, true);
        return;
      }
    };
    choose(candidates, isFull());
    return only || packing === "filled" ? chosen : closest(chosen, target, passRows);
  }
}

/**
 * Rows that a pass should have, so that enough passes are on the way to keep all stages busy: those of a whole number of
 * micro-batches, so that passes are alike. A mini-batch of n micro-batches takes as long as D - 1 + n passes on D stages: in
 * the time of one pass an adapter has n / (D - 1 + n) micro-batches to give.
 */
export function targetRows(
  adapters: readonly Pick<Member, "cuts" | "meanRows">[],
  stages: number,
  passRows: number,
  spare = SPARE,
): number {
  if (stages === 1 || adapters.length === 0) return passRows;
  const supply = sum(adapters.map(({ cuts }) => cuts / (stages - 1 + cuts)));
  const each = sum(adapters.map(({ meanRows }) => meanRows)) / adapters.length;
  return Math.min(passRows, each * Math.max(1, Math.floor((1 - spare) * supply)));
}

/** How many adapters keep all stages busy with full passes; what more of them would add is only that they need not wait. */
export function enoughAdapters(
  adapters: readonly Pick<Member, "cuts" | "meanRows">[],
  stages: number,
  passRows: number,
): number {
  const each = sum(adapters.map(({ meanRows }) => meanRows)) / adapters.length;
  const cuts = sum(adapters.map((adapter) => adapter.cuts)) / adapters.length;
  if (stages === 1) return Math.ceil(passRows / each);
  return Math.ceil((stages - 1 + cuts) / cuts / (1 - SPARE));
}

/**
 * How many adapters are in a step at once, at most, where as many passes are filled as may be in flight. `isSerial`: a stage
 * that is alone loses nothing where the next adapter's pass comes after a step.
 */
export function inStep(
  adapters: readonly Pick<Member, "meanRows">[],
  stages: number,
  passRows: number,
  inFlight: number,
  isSerial: boolean,
): number {
  const least = Math.min(...adapters.map(({ meanRows }) => meanRows));
  if (stages === 1 && isSerial && 2 * least > MOST_UNEVEN * passRows) return 1; // two hardly ever have room in a pass
  const passes = stages === 1 ? 1 : inFlight + 1; // and those of one that are yet to step
  return Math.max(1, Math.ceil((MOST_UNEVEN * passes * passRows) / least));
}

/** Rows of the largest pass that is put together of several adapters' micro-batches. */
export const mostRows = (target: number, passRows: number): number => Math.min(passRows, Math.ceil(MOST_OVER * target));

/** One after the other in order, where only the first of many are needed; reorders them. `before`: a total order. */
export function* inOrder<T>(all: T[], before: (a: T, b: T) => number): Generator<T> {
  const sink = (from: number): void => {
    const item = all[from]!;
    let at = from;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= all.length) break;
      if (below + 1 < all.length && before(all[below + 1]!, all[below]!) < 0) below++;
      if (before(item, all[below]!) <= 0) break;
      all[at] = all[below]!;
      at = below;
    }
    all[at] = item;
  };
  for (let at = (all.length >> 1) - 1; at >= 0; at--) sink(at);
  while (all.length > 0) {
    const first = all[0]!;
    const last = all.pop()!;
    if (all.length > 0) {
      all[0] = last;
      sink(0);
    }
    yield first;
  }
}

function advance(member: Member): void {
  const { value, done } = member.segments.next();
  member.next = done ? null : value;
  member.rows = done ? 0 : member.rowsOf(value);
}

/**
 * The candidates whose rows together come closest to `target` and not over `most`, the first of them always among them; of
 * equally close sets, one of earlier candidates.
 */
export function closest<T extends { readonly rows: number }>(candidates: readonly T[], target: number, most: number): T[] {
  const first = candidates[0]!;
  const room = Math.min(most, MOST_OVER * target) - first.rows;
  // by[n]: the candidate that completes a sum of n rows with the first's. Those before it have completed what is left.
  const by = new Map<number, T>();
  let best = 0;
  for (const candidate of candidates.slice(1))
    for (const before of [0, ...by.keys()]) {
      const total = before + candidate.rows;
      if (total > room || by.has(total)) continue;
      by.set(total, candidate);
      if (Math.abs(first.rows + total - target) < Math.abs(first.rows + best - target)) best = total;
    }
  const chosen = [first];
  for (let left = best; left > 0; ) {
    const member = by.get(left)!;
    chosen.push(member);
    left -= member.rows;
  }
  return chosen;
}
