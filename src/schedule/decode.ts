// Passes of generation: prompts that are read whole, and sequences that grow by a token each. Tables as a training pass has
// them.
//
// Batch invariance, as in training: a low-rank product has the same size whatever else is there. So a pass reads one
// prompt of an adapter at most, and what grows under an adapter fits one tile of rows. Under none (-1) there are no such
// products, only frozen ones, whose rows do not depend on each other. What grows has another place whenever others end; it gets
// those that are summed alike.

import { invariant } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import { type BatchTables, paddingTables } from "./micro-batch.ts";

/**
 * A sequence whose tokens' keys are kept from row `firstRow` of the cache on. Its adapter is a slot, or -1 for the base alone.
 */
export type Growing = { readonly adapter: number; readonly ids: readonly number[]; readonly firstRow: number };

/** A device's tile of rows, and the places in it whose sums have the same order (device/tile.ts). */
export type Tile = { readonly rows: number; readonly sameOrder: readonly number[] };

/** The row of the `i`th of many rows that are each at such a place, and the whole tiles that `count` of them take. */
export const rowIndex = (i: number, { rows, sameOrder }: Tile): number =>
  Math.floor(i / sameOrder.length) * rows + sameOrder[i % sameOrder.length]!;
export const tiledRows = (count: number, { rows, sameOrder }: Tile): number => Math.ceil(count / sameOrder.length) * rows;

/**
 * A pass: `places` i32[M] says where in the cache a row's keys go, below 0 for none; `from`, what rows see
 * (engine/generation.ts).
 */
export type GenerationBatch = BatchTables & { readonly places: Int32Array; readonly from: "pass" | "cache" };

/** Rows that reading a prompt takes. */
export const promptRows = (tokens: number, { rows }: Tile): number => alignUp(tokens, rows);

/** Reads all tokens of some sequences; the last token of each has a target, in their order. */
export function prefill(sequences: readonly Growing[], adapters: number, tile: Tile): GenerationBatch {
  const own = sequences.filter(({ adapter }) => adapter >= 0).map(({ adapter }) => adapter);
  invariant(new Set(own).size === own.length, "two prompts of one adapter in a pass");
  const rows = sequences.reduce((rows, { ids }) => rows + promptRows(ids.length, tile), 0);
  const pass = padding(rows, sequences.length, adapters, tile, "pass");
  let row = 0;
  for (const [i, { adapter, ids, firstRow }] of sequences.entries()) {
    const first = row;
    for (const [at, id] of ids.entries()) putRow(pass, row++, id, at, [first, first + ids.length], firstRow + at);
    putTarget(pass, i, row - 1, tile);
    row = alignUp(row, tile.rows);
    pass.tileAdapter.fill(adapter, first / tile.rows, row / tile.rows);
  }
  return pass;
}

/** Takes the last token of each sequence, whose others are kept. */
export function decode(sequences: readonly Growing[], adapters: number, tile: Tile): GenerationBatch {
  const tiles = [...new Set(sequences.map(({ adapter }) => adapter))].sort((a, b) => a - b);
  const pass = padding(tiles.length * tile.rows, sequences.length, adapters, tile, "cache");
  pass.tileAdapter.set(tiles);
  const used = new Map(tiles.map((adapter) => [adapter, 0]));
  for (const [i, { adapter, ids, firstRow }] of sequences.entries()) {
    const within = used.get(adapter)!;
    invariant(within < tile.sameOrder.length, `more than ${tile.sameOrder.length} sequences of one adapter in a pass`);
    used.set(adapter, within + 1);
    const row = tiles.indexOf(adapter) * tile.rows + tile.sameOrder[within]!;
    const last = ids.length - 1;
    putRow(pass, row, ids[last]!, last, [firstRow, firstRow + ids.length], firstRow + last);
    putTarget(pass, i, row, tile);
  }
  return pass;
}

/** Rows that see nothing and are kept nowhere, with room for a target of each sequence. */
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

/** The logits of a row are the `i`th sequence's: a target where what is summed alike may stand. */
function putTarget(pass: GenerationBatch, i: number, row: number, tile: Tile): void {
  pass.targetRows[rowIndex(i, tile)] = row;
}
