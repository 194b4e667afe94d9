// What each optimizer step of one adapter trains on: a function of its own data and settings alone, never of others.

import { Rng } from "../base/rng.ts";
import { range, rangeOfRows, sum, sumOfMany } from "../base/shape.ts";
import { mixedCounts, mixedOrder, type SourceMix } from "./mix.ts";

/** A number of each row. */
export type Lengths = readonly number[] | Int32Array;

export type Work = {
  /** Tokens that each row of the training data feeds to the model. */
  readonly lengths: Lengths;
  readonly batchSize: number;
  readonly accumulation: number;
  readonly epochs: number | null;
  readonly steps: number | null;
  readonly shuffle: boolean;
  readonly seed: number;
  /** How rows of several sources are mixed; left out, an epoch has each row once. */
  readonly sources?: SourceMix;
  /** Where rows are yet to be read, so that each of `lengths` is found when it is asked for: what is known of all of them. */
  readonly unread?: UnreadLengths;
};

/** Tokens that a row has at most, and about the mean. */
export type UnreadLengths = { readonly most: number; readonly mean: number };

/** Rows of an optimizer step, as indices into the data, in the order of the epoch; and the same cut into micro-batches. */
export type StepRows = {
  readonly epoch: number;
  readonly rows: readonly number[];
  readonly microBatches: readonly (readonly number[])[];
};

/** Rows of an epoch. */
const epochRows = ({ lengths, sources }: Work): number => (sources ? sum(mixedCounts(sources, lengths)) : lengths.length);

export const stepsPerEpoch = (work: Work): number => Math.ceil(epochRows(work) / (work.batchSize * work.accumulation));

/** How many optimizer steps the work has. */
export const totalSteps = (work: Work): number =>
  work.steps ?? Math.max(1, Math.ceil((work.epochs ?? 1) * stepsPerEpoch(work) - 1e-9));

/** The order of the rows in an epoch. */
export function epochOrder({ lengths, shuffle, seed, sources }: Work, epoch: number): Int32Array {
  if (sources) return mixedOrder(sources, lengths, seed, epoch, shuffle);
  const order = rangeOfRows(lengths.length);
  return shuffle ? new Rng(seed, epoch, 0x0e0c).shuffle(order) : order;
}

/**
 * Cuts rows into as few micro-batches of at most `batchSize` rows and `budget` tokens as can be, alike in tokens: a pipeline's
 * stages wait for each other where they are not. A row longer than the budget stands alone (the plan has made room for it).
 * Rows keep their order within a micro-batch.
 */
export function cut(rows: readonly number[], lengths: Lengths, batchSize: number, tokensPerMicrobatch: number): number[][] {
  const tokens = sum(rows.map((row) => Math.min(lengths[row]!, tokensPerMicrobatch)));
  const longestFirst = [...rows.keys()].sort((a, b) => lengths[rows[b]!]! - lengths[rows[a]!]! || a - b);
  for (
    let count = Math.max(Math.ceil(rows.length / batchSize), Math.ceil(tokens / tokensPerMicrobatch));
    count < rows.length;
    count++
  ) {
    const batches = range(count).map((index) => ({ index, places: [] as number[], tokens: 0 }));
    const open = [...batches]; // a heap: the one with the fewest tokens is on top, the first of them
    for (const place of longestFirst) {
      const emptiest = open[0]!;
      emptiest.places.push(place);
      emptiest.tokens += lengths[rows[place]!]!;
      if (emptiest.places.length === batchSize) {
        open[0] = open.at(-1)!;
        open.pop();
      }
      sink(open, (a, b) => a.tokens - b.tokens || a.index - b.index);
    }
    if (batches.some((batch) => batch.tokens > tokensPerMicrobatch && batch.places.length > 1)) continue;
    const inOrder = batches.map(({ places }) => places.sort((a, b) => a - b)).sort(([a], [b]) => a! - b!);
    return inOrder.map((places) => places.map((place) => rows[place]!));
  }
  return rows.map((row) => [row]);
}

/** Lets the top of a heap, which may be in disorder, come down to its place. */
function sink<T>(heap: T[], compare: (a: T, b: T) => number): void {
  for (let at = 0; ; ) {
    const [left, right] = [2 * at + 1, 2 * at + 2];
    const child = right < heap.length && compare(heap[right]!, heap[left]!) < 0 ? right : left;
    if (child >= heap.length || compare(heap[at]!, heap[child]!) <= 0) return;
    [heap[at], heap[child]] = [heap[child]!, heap[at]!];
    at = child;
  }
}

/**
 * The steps of an adapter in order, from step `from` on. The last of an epoch may have fewer rows; no row is left out and none
 * is repeated.
 */
export function* stepsOf(work: Work, tokensPerMicrobatch: number, from = 0): Generator<StepRows> {
  const perStep = work.batchSize * work.accumulation;
  const perEpoch = stepsPerEpoch(work);
  const total = totalSteps(work);
  let order: Int32Array = new Int32Array();
  for (let step = from; step < total; step++) {
    const epoch = Math.floor(step / perEpoch);
    const inEpoch = step % perEpoch;
    if (inEpoch === 0 || step === from) order = epochOrder(work, epoch);
    const rows = [...order.subarray(inEpoch * perStep, (inEpoch + 1) * perStep)];
    yield { epoch, rows, microBatches: cut(rows, work.lengths, work.batchSize, tokensPerMicrobatch) };
  }
}

/** Epochs that are begun. */
export const epochsBegun = (work: Work): number => Math.ceil(totalSteps(work) / stepsPerEpoch(work));

/** The rows that are trained on, ascending: in less than an epoch not all of them. */
export function usedRows(work: Work): number[] {
  const isUsed = new Uint8Array(work.lengths.length);
  let [left, unused] = [totalSteps(work), isUsed.length];
  for (let epoch = 0; left > 0 && unused > 0; epoch++) {
    const rows = Math.min(left, stepsPerEpoch(work)) * work.batchSize * work.accumulation;
    for (const row of epochOrder(work, epoch).subarray(0, rows)) {
      unused -= 1 - isUsed[row]!;
      isUsed[row] = 1;
    }
    left -= stepsPerEpoch(work);
  }
  const used: number[] = [];
  for (let row = 0; row < isUsed.length; row++) if (isUsed[row] === 1) used.push(row);
  return used;
}

/** Tokens of an epoch, on the average. */
export function epochTokens(work: Work): number {
  const { lengths, sources, unread } = work;
  if (unread) return Math.round(epochRows(work) * unread.mean);
  if (!sources) return sumOfMany(lengths);
  let first = 0;
  return sum(
    mixedCounts(sources, lengths).map((count, i) => {
      const own = lengths.slice(first, first + sources.sizes[i]!);
      first += sources.sizes[i]!;
      return (sumOfMany(own) / own.length) * count;
    }),
  );
}

/** Of mixes of several sources: rows that are counted one by one, in some seconds. */
const MOST_COUNTED = 2e7;

/** Tokens of all steps together; of a mix over very many rows, by those of an epoch on the average. */
export function totalTokens(work: Work): number {
  const perEpoch = stepsPerEpoch(work);
  const total = totalSteps(work);
  if (work.unread) return Math.round((total / perEpoch) * epochTokens(work));
  const epochs = Math.floor(total / perEpoch);
  const tokensOf = (rows: Int32Array) => rows.reduce((all, row) => all + work.lengths[row]!, 0);
  const isCounted = !work.sources || epochs * epochRows(work) <= MOST_COUNTED;
  if (!isCounted) return Math.round((total / perEpoch) * epochTokens(work));
  const whole = work.sources
    ? sum(range(epochs).map((epoch) => tokensOf(epochOrder(work, epoch))))
    : epochs * sumOfMany(work.lengths);
  const rest = (total % perEpoch) * work.batchSize * work.accumulation;
  return rest === 0 ? whole : whole + tokensOf(epochOrder(work, epochs).subarray(0, rest));
}
