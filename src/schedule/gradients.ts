// Gradients have memory only while their adapter is in a step: from its mini-batch's first micro-batch to its optimizer step.
// Stages have a few buffers for them, each for one adapter at a time; a mini-batch begins when there is one left for it.

/** Buffers of each stage, and what each adapter's gradients take there: elements, or any one unit. */
export type GradientNeeds = {
  /** Of each stage, the largest first. */
  readonly buffers: readonly (readonly number[])[];
  /** Of an adapter, for each stage; the same at each call. */
  readonly needed: (adapter: number) => readonly number[];
};

/** Whether each of these has a buffer that is large enough to itself; both with the largest first. */
export const fitBuffers = (sizes: readonly number[], buffers: readonly number[]): boolean =>
  sizes.length <= buffers.length && sizes.every((size, i) => size <= buffers[i]!);

/** Asks of adapters, one after the other, whether each has room next to all that are in a step and those `added` so far. */
export type Selection = {
  readonly fits: (adapter: number) => boolean;
  readonly add: (adapter: number) => void;
  /** No adapter fits that is not yet in a step. */
  readonly isFull: () => boolean;
};

const ANY: Selection = { fits: () => true, add: () => undefined, isFull: () => false };

/** Which adapters are in a step. */
export class GradientRoom {
  /** By adapter, what it needs on each stage. */
  readonly #held = new Map<number, readonly number[]>();

  /** Null: as much room as is asked for. */
  constructor(private readonly needs: GradientNeeds | null) {}

  /** Next to those that are in a step now. A selection holds until the next `take` or `release`. */
  selection(): Selection {
    const { needs } = this;
    if (!needs) return ANY;
    const most = Math.min(...needs.buffers.map(({ length }) => length));
    const held = new Map(this.#held);
    /** On each stage, the largest that fits next to those that are held: buffers are few, adapters many. */
    let largest: readonly number[] | null = null;
    const limits = (): readonly number[] =>
      needs.buffers.map((buffers, stage) => largestNext([...held.values()].map((of) => of[stage]!).sort(descending), buffers));
    const isFull = () => held.size >= most;
    const fits = (adapter: number): boolean => {
      if (held.has(adapter)) return true;
      if (isFull()) return false;
      largest ??= limits();
      const needed = needs.needed(adapter);
      return largest.every((limit, stage) => needed[stage]! <= limit);
    };
    const add = (adapter: number): void => {
      if (held.has(adapter)) return;
      held.set(adapter, needs.needed(adapter));
      largest = null;
    };
    return { fits, add, isFull };
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

/**
 * The largest size that has a buffer next to these, as `fitBuffers` says; -Infinity where none has. Both with the largest
 * first. A new size moves those after it on by one buffer: as it grows it moves more of them, so there is one largest.
 */
export function largestNext(sizes: readonly number[], buffers: readonly number[]): number {
  if (!fitBuffers(sizes, buffers) || sizes.length === buffers.length) return Number.NEGATIVE_INFINITY;
  let at = sizes.length; // the first place from which all could move on
  while (at > 0 && sizes[at - 1]! <= buffers[at]!) at--;
  return buffers[at]!;
}

const descending = (a: number, b: number): number => b - a;
