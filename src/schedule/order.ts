// The order of work as data: which micro-batches run together, and when which adapter steps.
//
// In a round each active adapter gives its next micro-batch. They are packed, in the order of the adapters, into passes of at
// most `passRows` rows, so that many adapters share one pass over the base weights. An adapter steps when the last micro-batch
// of its mini-batch is done.

import { paddedRows, type ShareRef, sharesOf } from "./shares.ts";
import type { Work } from "./steps.ts";

export type { ShareRef } from "./shares.ts";

export type Action =
  | { readonly kind: "forward"; readonly pass: number; readonly shares: readonly ShareRef[] }
  | { readonly kind: "backward"; readonly pass: number }
  | { readonly kind: "step"; readonly steps: readonly { readonly adapter: number; readonly step: number }[] };

export type Limits = { readonly budget: number; readonly passRows: number; readonly rowTile: number };

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
  let active = works.map((work, adapter) => ({ adapter, shares: sharesOf(adapter, work, budget) }));
  for (let pass = 0; active.length > 0; ) {
    const round = active.filter(({ adapter }) => !ended(adapter)).map((of) => ({ of, next: of.shares.next() }));
    active = round.filter(({ next }) => !next.done).map(({ of }) => of);
    const shares = round.flatMap(({ next }) => (next.done ? [] : [next.value]));
    for (const group of inPasses(shares, works, passRows, rowTile)) {
      yield { kind: "forward", pass, shares: group };
      yield { kind: "backward", pass };
      pass++;
    }
    const steps = shares.filter(({ last }) => last).map(({ adapter, step }) => ({ adapter, step }));
    if (steps.length > 0) yield { kind: "step", steps };
  }
}

/** Cuts a round's shares into passes of at most `passRows` rows, in order. */
function inPasses(shares: readonly ShareRef[], works: readonly Work[], passRows: number, rowTile: number): ShareRef[][] {
  const passes: ShareRef[][] = [];
  let used = Number.POSITIVE_INFINITY;
  for (const share of shares) {
    const rows = paddedRows(works[share.adapter]!, share, rowTile);
    if (used + rows > passRows) {
      passes.push([]);
      used = 0;
    }
    passes.at(-1)!.push(share);
    used += rows;
  }
  return passes;
}
