// Passes of generation: prompts that are read whole, and sequences that are extended by a token each. Tables as a training pass
// has them.
//
// Batch invariance, as in training: a low-rank product has the same size whatever else is in the pass. So a pass reads one
// prompt of an adapter at most, and an adapter's sequences that are extended fit one tile of rows. Without an adapter (-1)
// there are only frozen products, whose rows do not depend on each other. A sequence moves to another row when others end; rows
// are those summed in the same order.

import { invariant } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import { type GenerationBatch, paddingTables } from "./micro-batch.ts";

/**
 * A sequence whose tokens' keys are kept from row `firstRow` of the cache on. Its adapter is a slot, or -1 for the base model
 * alone.
 */
export type GeneratedSequence = {
  readonly adapter: number;
  readonly ids: readonly number[];
  readonly firstRow: number;
  /** By a LongRoPE's long factors: a position i is ~i then. */
  readonly isLong?: boolean;
};

/** A device's tile of rows, and the places in it whose sums have the same order (device/tile.ts). */
export type Tile = { readonly rows: number; readonly sameOrder: readonly number[] };

/** The row of the `i`th of many rows that are each at such a place, and the whole tiles that `count` of them take. */
export const rowIndex = (i: number, { rows, sameOrder }: Tile): number =>
  Math.floor(i / sameOrder.length) * rows + sameOrder[i % sameOrder.length]!;
export const tiledRows = (count: number, { rows, sameOrder }: Tile): number => Math.ceil(count / sameOrder.length) * rows;

/** Rows that reading a prompt takes. */
export const promptRows = (tokens: number, { rows }: Tile): number => alignUp(tokens, rows);

/** Reads all tokens of some sequences; the last token of each has a target, in their order. */
export function prefill(sequences: readonly GeneratedSequence[], adapters: number, tile: Tile): GenerationBatch {
  const own = sequences.filter(({ adapter }) => adapter >= 0).map(({ adapter }) => adapter);
  invariant(new Set(own).size === own.length, "two prompts of one adapter in a pass");
  const rows = sequences.reduce((rows, { ids }) => rows + promptRows(ids.length, tile), 0);
  const pass = padding(rows, sequences.length, adapters, tile, "pass");
  let row = 0;
  for (const [i, { adapter, ids, firstRow, isLong = false }] of sequences.entries()) {
    const first = row;
    for (const [at, id] of ids.entries())
      putRow(pass, row++, id, isLong ? ~at : at, [first, first + ids.length], firstRow + at);
    putTarget(pass, i, row - 1, tile);
    row = alignUp(row, tile.rows);
    pass.tileAdapter.fill(adapter, first / tile.rows, row / tile.rows);
  }
  return pass;
}

/** Reads the last token of each sequence; the keys of the others are kept. */
export function decode(sequences: readonly GeneratedSequence[], adapters: number, tile: Tile): GenerationBatch {
  const tiles = [...new Set(sequences.map(({ adapter }) => adapter))].sort((a, b) => a - b);
  const pass = padding(tiles.length * tile.rows, sequences.length, adapters, tile, "cache");
  pass.tileAdapter.set(tiles);
  const used = new Map(tiles.map((adapter) => [adapter, 0]));
  for (const [i, { adapter, ids, firstRow, isLong = false }] of sequences.entries()) {
    const within = used.get(adapter)!;
    invariant(within < tile.sameOrder.length, `more than ${tile.sameOrder.length} sequences of one adapter in a pass`);
    used.set(adapter, within + 1);
    const row = tiles.indexOf(adapter) * tile.rows + tile.sameOrder[within]!;
    const last = ids.length - 1;
    putRow(pass, row, ids[last]!, isLong ? ~last : last, [firstRow, firstRow + ids.length], firstRow + last);
    putTarget(pass, i, row, tile);
  }
  return pass;
}

/** Rows that attend to nothing and are kept nowhere, with room for a target of each sequence. */
function padding(rows: number, sequences: number, adapters: number, tile: Tile, from: "pass" | "cache"): GenerationBatch {
  const tables = paddingTables({ rows, targets: tiledRows(sequences, tile), adapters, rowTile: tile.rows });
  if (from === "cache") tables.bounds.fill(0);
  return { ...tables, from, places: new Int32Array(rows).fill(-1) };
}

function putRow(
  pass: GenerationBatch,
  row: number,
  id: number,
  position: number,
  bounds: [number, number],
  place: number,
): void {
  pass.ids[row] = id;
  pass.positions[row] = position;
  pass.bounds.set(bounds, 2 * row);
  pass.places[row] = place;
}

/** The logits of a row are the `i`th sequence's: its target is at a place where sums have the same order. */
function putTarget(pass: GenerationBatch, i: number, row: number, tile: Tile): void {
  pass.targetRows[rowIndex(i, tile)] = row;
}
