// Passes of generation: prompts that are read whole, and sequences that are extended by a token each. Tables as a training pass has them.
//
// Batch invariance, as in training: a low-rank product has the same size whatever else is in the pass. So a pass reads one prompt of an
// adapter at most, and an adapter's sequences that are extended fit one tile of rows. Without an adapter (-1) there are only frozen products,
// whose rows do not depend on each other. A sequence moves to another row when others end; rows are those summed in the same order.

import { invariant } from "../base/errors.ts";
import { alignUp } from "../base/shape.ts";
import { type MicroBatch, NO_ROW, noDropout } from "./pack.ts";

/** A sequence whose tokens' keys are kept from row `firstRow` of the cache on. Its adapter is a slot, or -1 for the base model alone. */
export type GeneratedSequence = { readonly adapter: number; readonly ids: readonly number[]; readonly firstRow: number };

/** A device's tile of rows, and the places in it whose rows are summed in the same order (device/tile.ts). */
export type Tile = { readonly rows: number; readonly sameOrder: readonly number[] };

/** The row of the `i`th of many rows that are each at such a place, and the whole tiles that `count` of them take. */
export const rowIndex = (i: number, { rows, sameOrder }: Tile): number =>
  Math.floor(i / sameOrder.length) * rows + sameOrder[i % sameOrder.length]!;
export const tiledRows = (count: number, { rows, sameOrder }: Tile): number => Math.ceil(count / sameOrder.length) * rows;

type Tables = Omit<MicroBatch, "sequences" | "preferences" | "tokens">;

/** A pass: `places` i32[M] is the row of the cache for each row's keys, below 0 for none; `from` is what rows attend to (engine/kv-cache.ts). */
export type GenerationBatch = Tables & { readonly places: Int32Array; readonly from: "pass" | "cache" };

/** Rows that reading a prompt takes. */
export const promptRows = (tokens: number, { rows }: Tile): number => alignUp(tokens, rows);

/** Reads all tokens of some sequences; the last token of each has a target, in their order. */
export function prefill(sequences: readonly GeneratedSequence[], adapters: number, tile: Tile): GenerationBatch {
  const own = sequences.filter(({ adapter }) => adapter >= 0).map(({ adapter }) => adapter);
  invariant(new Set(own).size === own.length, "two prompts of one adapter in a pass");
  const pass = paddingPass(
    sequences.reduce((rows, { ids }) => rows + promptRows(ids.length, tile), 0),
    adapters,
    tile,
    "pass",
  );
  let row = 0;
  const ends = sequences.map(({ adapter, ids, firstRow }) => {
    const first = row;
    for (const [i, id] of ids.entries()) putRow(pass, row++, id, i, [first, first + ids.length], firstRow + i);
    const end = alignUp(row, tile.rows);
    pass.tileAdapter.fill(adapter, first / tile.rows, end / tile.rows);
    row = end;
    return first + ids.length - 1;
  });
  return withTargets(pass, ends, tile);
}

/** Reads the last token of each sequence; the keys of the others are kept. */
export function decode(sequences: readonly GeneratedSequence[], adapters: number, tile: Tile): GenerationBatch {
  const tiles = [...new Set(sequences.map(({ adapter }) => adapter))].sort((a, b) => a - b);
  const pass = paddingPass(tiles.length * tile.rows, adapters, tile, "cache");
  pass.tileAdapter.set(tiles);
  const used = new Map(tiles.map((adapter) => [adapter, 0]));
  const rows = sequences.map(({ adapter, ids, firstRow }) => {
    const within = used.get(adapter)!;
    invariant(within < tile.sameOrder.length, `more than ${tile.sameOrder.length} sequences of one adapter in a pass`);
    used.set(adapter, within + 1);
    const row = tiles.indexOf(adapter) * tile.rows + tile.sameOrder[within]!;
    const last = ids.length - 1;
    putRow(pass, row, ids[last]!, last, [firstRow, firstRow + ids.length], firstRow + last);
    return row;
  });
  return withTargets(pass, rows, tile);
}

/** Tables of padding: rows that attend to nothing and are kept nowhere. */
function paddingPass(rows: number, adapters: number, tile: Tile, from: GenerationBatch["from"]): GenerationBatch {
  const bounds = Int32Array.from({ length: 2 * rows }, (_, i) => i >> 1);
  return {
    from,
    ids: new Int32Array(rows),
    positions: new Int32Array(rows),
    bounds: from === "pass" ? bounds : bounds.fill(0),
    rowNumber: new Int32Array(rows),
    tileAdapter: new Int32Array(rows / tile.rows).fill(-1),
    dropout: noDropout(adapters),
    targetRows: new Int32Array(0),
    targetIds: new Int32Array(0),
    weights: new Float32Array(0),
    places: new Int32Array(rows).fill(-1),
  };
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

/** The rows whose logits are returned, in the order of the sequences, at places that are summed in the same order. */
function withTargets(pass: GenerationBatch, rows: readonly number[], tile: Tile): GenerationBatch {
  const targets = tiledRows(rows.length, tile);
  const targetRows = new Int32Array(targets).fill(NO_ROW);
  for (const [i, row] of rows.entries()) targetRows[rowIndex(i, tile)] = row;
  return { ...pass, targetRows, targetIds: new Int32Array(targets), weights: new Float32Array(targets) };
}
