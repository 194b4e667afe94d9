// Rows of several sources by weights: how many of each an epoch has, and which. A function of the sources' sizes, of the
// weights and of the adapter's seed alone, so that any step can be made again.

import { hash, Rng } from "../base/rng.ts";
import { rangeOfRows, sum } from "../base/shape.ts";
import type { Lengths } from "./steps.ts";

export type Mix = {
  readonly weights: readonly number[];
  /** When an epoch ends: with the first source that has no more rows, or the last; the others begin anew meanwhile. */
  readonly stop: "first_exhausted" | "all_exhausted";
  /** What the weights are shares of. */
  readonly by: "rows" | "tokens";
};

/** With the rows of each source; those of the first come first. */
export type SourceMix = Mix & { readonly sizes: readonly number[] };

const TAG = 0x317c;

/** Rows of each source in an epoch: all of the one that ends it, and of each at least one. */
export function mixedCounts({ weights, stop, by, sizes }: SourceMix, lengths: Lengths): number[] {
  const firsts = firstsOf(sizes);
  const meanOf = (i: number) => sum(lengths.slice(firsts[i], firsts[i]! + sizes[i]!)) / sizes[i]!;
  const shares = weights.map((weight, i) => weight / (by === "tokens" ? meanOf(i) : 1));
  const epochs = sizes.map((size, i) => size / shares[i]!);
  const ends = stop === "first_exhausted" ? Math.min(...epochs) : Math.max(...epochs);
  return sizes.map((size, i) => {
    const wanted = Math.max(1, Math.round(ends * shares[i]!));
    return stop === "first_exhausted" ? Math.min(size, wanted) : Math.max(size, wanted);
  });
}

const firstsOf = (sizes: readonly number[]): number[] => sizes.map((_, i) => sum(sizes.slice(0, i)));

/**
 * The rows of an epoch. Each source continues where it ended in the epoch before, and is passed through anew, in another order
 * with `shuffle`, when it ends: no row comes twice before all have come once.
 */
export function mixedOrder(mix: SourceMix, lengths: Lengths, seed: number, epoch: number, shuffle: boolean): Int32Array {
  const counts = mixedCounts(mix, lengths);
  const firsts = firstsOf(mix.sizes);
  const rows = counts.map((count, i) => streamOf(mix.sizes[i]!, i, seed, epoch * count, count, shuffle));
  const taken = counts.map(() => 0);
  return labelsOf(counts, seed, epoch, shuffle).map((i) => firsts[i]! + rows[i]![taken[i]!++]!);
}

/** `count` rows of a source from the `from`-th on that it has given in all. */
function streamOf(size: number, source: number, seed: number, from: number, count: number, shuffle: boolean): Int32Array {
  const rows = new Int32Array(count);
  for (let [pass, filled] = [Math.floor(from / size), 0]; filled < count; pass++) {
    const order = rangeOfRows(size);
    if (shuffle) new Rng(seed, pass, hash(TAG, source)).shuffle(order);
    const first = Math.max(0, from - pass * size);
    const taken = order.subarray(first, first + count - filled);
    rows.set(taken, filled);
    filled += taken.length;
  }
  return rows;
}

/** Which source each row of an epoch comes from: evenly, or by chance with these counts. */
function labelsOf(counts: readonly number[], seed: number, epoch: number, shuffle: boolean): Int32Array {
  const even = new Int32Array(sum(counts));
  const taken = counts.map(() => 0);
  for (let row = 0; row < even.length; row++) {
    let [first, at] = [-1, Number.POSITIVE_INFINITY]; // the source whose next row comes first; of several the first
    for (let i = 0; i < counts.length; i++) {
      const own = taken[i]! < counts[i]! ? (taken[i]! + 0.5) / counts[i]! : Number.POSITIVE_INFINITY;
      if (own < at) [first, at] = [i, own];
    }
    even[row] = first;
    taken[first]!++;
  }
  return shuffle ? new Rng(seed, epoch, TAG).shuffle(even) : even;
}
