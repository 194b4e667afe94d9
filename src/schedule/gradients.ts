// Gradients have memory only while their adapter is in a step: from its mini-batch's first micro-batch to its optimizer step.
// Stages have a few buffers for them, each for one adapter at a time; a mini-batch begins when there is one left for it.

/** Buffers of each stage, and what each adapter's gradients take there: elements, or any one unit. */
export type GradientNeeds = {
  /** Of each stage, the largest first. */
  readonly buffers: readonly (readonly number[])[];
  /** Of an adapter, for each stage. */
  readonly needed: (adapter: number) => readonly number[];
};

/** Whether each of these has a buffer that is large enough to itself; both with the largest first. */
export const fitBuffers = (sizes: readonly number[], buffers: readonly number[]): boolean =>
  sizes.length <= buffers.length && sizes.every((size, i) => size <= buffers[i]!);

/** Which adapters are in a step. */
export class GradientRoom {
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
