// The order of work as data: which micro-batches run together, and when which adapter steps.
//
// In a round each active adapter gives its next micro-batch. They are packed, in the order of the adapters, into passes of at
// most `passRows` rows, so that many adapters share one pass over the base weights. An adapter steps when the last micro-batch
// of its mini-batch is done.

import { alignUp } from "../base/shape.ts";
import { stepsOf, type Work } from "./steps.ts";

/** A micro-batch of one adapter within a pass. */
export type ShareRef = {
  readonly adapter: number;
  readonly step: number;
  readonly rows: readonly number[];
  /** Tokens and rows of the same mini-batch that came before. */
  readonly firstRow: number;
  /** All rows of the mini-batch, whose targets the loss is averaged over. */
  readonly miniBatch: readonly number[];
};

export type Action =
  | { readonly kind: "forward"; readonly pass: number; readonly shares: readonly ShareRef[] }
  | { readonly kind: "backward"; readonly pass: number }
  | { readonly kind: "step"; readonly steps: readonly { readonly adapter: number; readonly step: number }[] };

export type Limits = { readonly budget: number; readonly passRows: number; readonly rowTile: number };

type Cursor = {
  readonly adapter: number;
  readonly work: Work;
  readonly steps: Iterator<{ readonly microBatches: readonly (readonly number[])[] }>;
  step: number;
  queue: (readonly number[])[];
  miniBatch: readonly number[];
  firstRow: number;
};

function nextShare(cursor: Cursor): ShareRef | null {
  if (cursor.queue.length === 0) {
    const { value, done } = cursor.steps.next();
    if (done) return null;
    cursor.step++;
    cursor.queue = [...value.microBatches];
    cursor.miniBatch = value.microBatches.flat();
    cursor.firstRow = 0;
  }
  const rows = cursor.queue.shift()!;
  const share = { adapter: cursor.adapter, step: cursor.step, rows, firstRow: cursor.firstRow, miniBatch: cursor.miniBatch };
  cursor.firstRow += tokensOf(cursor.work, rows);
  return share;
}

const tokensOf = (work: Work, rows: readonly number[]): number => rows.reduce((total, row) => total + work.lengths[row]!, 0);

/**
 * Rounds until all work is done. `budget` bounds an adapter's own micro-batch, and so decides its sums; `passRows` bounds what
 * runs together, shares rounded up to `rowTile` (a larger one runs alone), and decides nothing but speed and memory. An adapter
 * that `ended` names is left out from the next round on.
 */
export function* schedule(
  works: readonly Work[],
  { budget, passRows, rowTile }: Limits,
  ended: (adapter: number) => boolean = () => false,
): Generator<Action> {
  let cursors: Cursor[] = works.map((work, adapter) => ({
    adapter,
    work,
    steps: stepsOf(work, budget),
    step: -1,
    queue: [],
    miniBatch: [],
    firstRow: 0,
  }));
  for (let pass = 0; cursors.length > 0; ) {
    const round = cursors.filter(({ adapter }) => !ended(adapter)).map((cursor) => ({ cursor, share: nextShare(cursor) }));
    cursors = round.filter(({ share }) => share !== null).map(({ cursor }) => cursor);
    const shares = round.flatMap(({ share }) => (share ? [share] : []));
    for (const group of inPasses(shares, works, passRows, rowTile)) {
      yield { kind: "forward", pass, shares: group };
      yield { kind: "backward", pass };
      pass++;
    }
    const steps = cursors.filter(({ queue }) => queue.length === 0).map(({ adapter, step }) => ({ adapter, step }));
    if (steps.length > 0) yield { kind: "step", steps };
  }
}

/** Cuts a round's shares into passes of at most `passRows` rows, in order. */
function inPasses(shares: readonly ShareRef[], works: readonly Work[], passRows: number, rowTile: number): ShareRef[][] {
  const passes: ShareRef[][] = [];
  let used = Number.POSITIVE_INFINITY;
  for (const share of shares) {
    const rows = alignUp(tokensOf(works[share.adapter]!, share.rows), rowTile);
    if (used + rows > passRows) {
      passes.push([]);
      used = 0;
    }
    passes.at(-1)!.push(share);
    used += rows;
  }
  return passes;
}
