// What schedule/balance.ts and schedule/gradients.ts decide, the plain way: all adapters are looked at and put in order for
// each decision. Their decisions are these.

import { sum } from "../../src/base/shape.ts";
import { closest, type Member, type memberOf, type PoolOptions } from "../../src/schedule/balance.ts";
import { fitBuffers, type GradientNeeds } from "../../src/schedule/gradients.ts";
import type { PackedBatch } from "../../src/schedule/lists.ts";

const PATIENCE = 2;
const MOST_CANDIDATES = 24;

type Entry = ReturnType<typeof memberOf>;

export class PlainPool {
  readonly #members: Member[] = [];
  readonly #gradients: PlainRoom;

  constructor(readonly options: PoolOptions) {
    this.#gradients = new PlainRoom(options.gradients ?? null);
  }

  /** Those that have micro-batches left to give. */
  get waiting(): readonly Member[] {
    return this.#members.filter(({ next }) => next !== null);
  }

  /** Adds an adapter from one of its steps on; replaces what is here of one that left and came back since the last `sift`. */
  add(entry: Entry): void {
    const known = this.#members.findIndex(({ adapter }) => adapter === entry.adapter);
    if (known >= 0) this.#members.splice(known, 1);
    const added = { ...entry, next: null, rows: 0, ready: 0, passed: 0 };
    advance(added);
    if (added.next) this.#members.push(added);
  }

  /** Lets go of those that are done, and of those that have `left`; a mini-batch that was begun is finished all the same. */
  sift(left: (adapter: number) => boolean): void {
    for (let i = this.#members.length - 1; i >= 0; i--) {
      const { adapter, next, ready } = this.#members[i]!;
      const done = next === null ? ready < Number.POSITIVE_INFINITY : next.firstRow === 0 && left(adapter);
      if (done) this.#members.splice(i, 1);
    }
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
    const ready = this.#eligible().filter((member) => member.ready < Number.POSITIVE_INFINITY);
    return ready.length > 1 || ready.some(({ next }) => !next!.last);
  }

  /**
   * The shares of the next pass, of about `target` rows, from adapters that are ready at `now` and none of `undecided`; there
   * must be one.
   */
  take(now: number, target: number, undecided: ReadonlySet<number> = new Set()): Omit<PackedBatch, "id"> {
    const mayBe = ({ adapter, ready }: Member) => ready <= now && !undecided.has(adapter);
    const waiting = this.waiting.filter(mayBe);
    const ready = this.#eligible().filter(mayBe);
    const chosen = this.#choose(
      ready.sort((a, b) => this.#before(a, b)),
      target,
    );
    for (const { adapter } of chosen) this.#gradients.take(adapter);
    const pass = { segments: chosen.map(({ next }) => next!), rows: sum(chosen.map(({ rows }) => rows)) };
    for (const member of waiting) member.passed++;
    for (const member of chosen) {
      member.passed = 0;
      if (member.next!.last) member.ready = Number.POSITIVE_INFINITY;
      advance(member);
    }
    return pass;
  }

  /** The adapter steps before all that begins from now on: its gradients make room. */
  stepped(adapter: number): void {
    this.#gradients.release(adapter);
  }

  /** The adapter's mini-batch is done on all stages at `at`: it may step, and then begin its next. */
  release(adapter: number, at: number): void {
    for (const member of this.#members) if (member.adapter === adapter) member.ready = at;
  }

  #eligible(): Member[] {
    const members = this.options.kind === "lorapp" ? this.#members : this.#members.slice(0, 1);
    const { fits } = this.#gradients.selection();
    return members.filter(({ next, adapter }) => next !== null && fits(adapter));
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

  /** From candidates in order of preference; the first is always among those chosen. */
  #choose(candidates: readonly Member[], target: number): Member[] {
    const { kind, packing, passRows } = this.options;
    if (kind !== "lorapp" || packing === "alone") return [candidates[0]!];
    const { fits, add } = this.#gradients.selection();
    let rows = 0;
    const isChosen = (member: Member, i: number): boolean => {
      if (packing === "filled" && i > 0 && rows + member.rows > passRows) return false;
      if (!fits(member.adapter)) return false;
      add(member.adapter);
      rows += member.rows;
      return true;
    };
    const chosen = candidates.filter(isChosen);
    return packing === "filled" ? chosen : closest(chosen.slice(0, MOST_CANDIDATES), target, passRows);
  }
}

function advance(member: Member): void {
  const { value, done } = member.segments.next();
  member.next = done ? null : value;
  member.rows = done ? 0 : member.rowsOf(value);
}

class PlainRoom {
  /** By adapter, what it needs on each stage. */
  readonly #held = new Map<number, readonly number[]>();

  /** Null: as much room as is asked for. */
  constructor(private readonly needs: GradientNeeds | null) {}

  /** Asks of adapters, one after the other, whether each has room next to all that are in a step and those `added` so far. */
  selection(): { readonly fits: (adapter: number) => boolean; readonly add: (adapter: number) => void } {
    const { needs } = this;
    if (!needs) return { fits: () => true, add: () => undefined };
    const most = Math.min(...needs.buffers.map(({ length }) => length));
    const held = new Map(this.#held);
    const sorted = (stage: number) => [...held.values()].map((of) => of[stage]!).sort(descending);
    let taken = needs.buffers.map((_, stage) => sorted(stage));
    const fits = (adapter: number): boolean => {
      if (held.has(adapter)) return true;
      if (held.size >= most) return false;
      const needed = needs.needed(adapter);
      return taken.every((sizes, stage) => fitBuffers([...sizes, needed[stage]!].sort(descending), needs.buffers[stage]!));
    };
    const add = (adapter: number): void => {
      held.set(adapter, needs.needed(adapter));
      taken = needs.buffers.map((_, stage) => sorted(stage));
    };
    return { fits, add };
  }

  /** An adapter's mini-batch begins. */
  take(adapter: number): void {
    if (this.needs) this.#held.set(adapter, this.needs.needed(adapter));
  }

  /** Its optimizer step comes before all that begins from now on. */
  release(adapter: number): void {
    this.#held.delete(adapter);
  }
}

const descending = (a: number, b: number): number => b - a;
