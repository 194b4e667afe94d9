// Passes of generation: prompts that are read whole, and sequences that are extended by a token each. Tables as a training pass
// has them.
//
// Batch invariance, as in training: a low-rank product has the same size whatever else is in the pass. Where an adapter's tiles
// are one product, a pass reads one prompt of it at most, and its sequences that are extended fit one tile of rows. GPUs
// multiply tile by tile, so it may have any number of both. Without an adapter (-1) there are only frozen products, whose rows
// do not depend on each other. A sequence moves to another row when others end; rows
// are those summed in the same order.

import { invariant } from "../base/errors.ts";
import type { Sampling } from "../base/sample.ts";
import { alignUp } from "../base/shape.ts";
import { type Choices, type GenerationBatch, paddingTables } from "./micro-batch.ts";

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
  /** Left out, the likeliest token. */
  readonly choice?: TokenChoice;
  /** One more token follows `ids`: that which the pass before, maybe under way, chooses for its sequence of this number. */
  readonly follows?: number;
  /** Of a sequence of which more than the last token is read: tokens whose keys are kept, now and after this pass. */
  readonly read?: number;
  readonly until?: number;
  /** Whether the tokens that are read are a prompt's: they attend together. */
  readonly isPrompt?: boolean;
  /** Whether they are multiplied by tiles of their adapter, as all rows of a training pass. */
  readonly isTiled?: boolean;
};

/** How the next token is chosen: `uniform` in [0, 1) is the chance; `logits`: all of them are asked for, too. */
export type TokenChoice = Sampling & { readonly uniform: number; readonly logits: boolean };

const LIKELIEST: TokenChoice = { temperature: 0, topK: 0, topP: 1, uniform: 0, logits: false };

function choicesOf(sequences: readonly GeneratedSequence[]): Choices {
  const count = sequences.length;
  const [temperature, topP, uniform] = [new Float32Array(count), new Float32Array(count), new Float32Array(count)];
  const [topK, logits] = [new Int32Array(count), new Int32Array(count)];
  for (let i = 0; i < count; i++) {
    const choice = sequences[i]!.choice ?? LIKELIEST;
    temperature[i] = choice.temperature;
    topK[i] = choice.topK;
    topP[i] = choice.topP;
    uniform[i] = choice.uniform;
    logits[i] = choice.logits ? 1 : 0;
  }
  return { temperature, topK, topP, uniform, logits };
}

/** A device's tile of rows, and the places in it whose sums have the same order (device/tile.ts). */
export type Tile = {
  readonly rows: number;
  readonly sameOrder: readonly number[];
  /** Whether an adapter's tiles are multiplied apart: then it may have any number of them in a pass. */
  readonly isApart: boolean;
};

/** The tiles of a pass that extends `counts` sequences of each adapter. */
export const tilesFor = (counts: Iterable<number>, { sameOrder }: Tile): number =>
  [...counts].reduce((all, count) => all + Math.ceil(count / sameOrder.length), 0);

/** The row of the `i`th of many rows that are each at such a place, and the whole tiles that `count` of them take. */
export const rowIndex = (i: number, { rows, sameOrder }: Tile): number =>
  Math.floor(i / sameOrder.length) * rows + sameOrder[i % sameOrder.length]!;
export const tiledRows = (count: number, { rows, sameOrder }: Tile): number => Math.ceil(count / sameOrder.length) * rows;

/** Tokens of a piece of a long prompt. */
export const PIECE = 512;

/** The same of long prompts next to sequences that are extended, where they are multiplied by tiles. */
export const TILED_PIECE = 2048;

/**
 * How stages read prompts: "rows" in any pieces next to sequences that are extended, whose bits these do not change; "pieces"
 * of PIECE tokens from their first on, in passes apart; "whole" where layers keep something else than keys of each token.
 */
export type Reading = "rows" | "pieces" | "whole";

/** Rows that reading a prompt takes. */
export const promptRows = (tokens: number, { rows }: Tile): number => alignUp(tokens, rows);

/**
 * Reads tokens of some prompts, each from a tile of its own on: `from` "pass" all of them, "cache" those from `read` to
 * `until`, whose keys before them are kept. Those that come to their end have a target, in their order.
 */
export function prefill(
  sequences: readonly GeneratedSequence[],
  adapters: number,
  tile: Tile,
  from: "pass" | "cache" = "pass",
): GenerationBatch {
  const own = sequences.filter(({ adapter }) => adapter >= 0).map(({ adapter }) => adapter);
  invariant(tile.isApart || new Set(own).size === own.length, "two prompts of one adapter in a pass");
  const rangeOf = ({ ids, read = 0, until = ids.length }: GeneratedSequence) => [read, until] as const;
  const rows = sequences.reduce((rows, of) => rows + promptRows(rangeOf(of)[1] - rangeOf(of)[0], tile), 0);
  const ended = sequences.filter((of) => rangeOf(of)[1] === of.ids.length);
  const pass = padding(rows, ended, adapters, tile, from, rows / tile.rows);
  let [row, targets] = [0, 0];
  for (const of of sequences) {
    const { adapter, ids, firstRow, isLong = false } = of;
    const [first, [read, until]] = [row, rangeOf(of)];
    invariant(from === "cache" || read === 0, "a piece of a prompt without the keys before it");
    for (let at = read; at < until; at++) {
      const bounds = from === "cache" ? ([~firstRow, firstRow + at + 1] as const) : ([first, first + until] as const);
      putRow(pass, row++, ids[at]!, isLong ? ~at : at, bounds, firstRow + at);
    }
    if (until === ids.length) putTarget(pass, targets++, row - 1, tile);
    row = alignUp(row, tile.rows);
    pass.tileAdapter.fill(adapter, first / tile.rows, row / tile.rows);
  }
  return pass;
}

/**
 * Reads tokens of sequences whose keys before them are kept: the last one of each, or those from `read` to `until`. Those that
 * come to their end have a target, in their order. Tiles of what is multiplied by tiles follow all others.
 */
export function decode(sequences: readonly GeneratedSequence[], adapters: number, tile: Tile): GenerationBatch {
  const each = tile.sameOrder.length;
  const rowsOf = (of: GeneratedSequence): readonly [from: number, until: number] => {
    const until = of.until ?? lengthOf(of);
    return [of.read ?? until - 1, until];
  };
  /** Of what is multiplied by rows and of what is by tiles: the rows of each adapter. */
  const counts = [new Map<number, number>(), new Map<number, number>()] as const;
  const countsOf = ({ isTiled = false }: GeneratedSequence) => counts[isTiled ? 1 : 0];
  for (const of of sequences) {
    const [[from, until], own] = [rowsOf(of), countsOf(of)];
    own.set(of.adapter, (own.get(of.adapter) ?? 0) + until - from);
  }
  const tiles: number[] = [];
  const [byRow, byTile] = counts.map((own) => {
    const found = new Map<number, { readonly first: number; used: number }>();
    for (const [adapter, count] of [...own].sort(([a], [b]) => a - b)) {
      found.set(adapter, { first: tiles.length * tile.rows, used: 0 });
      for (let i = tilesFor([count], tile); i > 0; i--) tiles.push(adapter);
    }
    return found;
  });
  const rowTiles = tilesFor(counts[0].values(), tile);
  invariant(
    tile.isApart || (byTile!.size === 0 && tiles.length === byRow!.size),
    `more than ${each} sequences of one adapter in a pass`,
  );
  const ended = sequences.filter((of) => rowsOf(of)[1] === lengthOf(of));
  const pass = padding(tiles.length * tile.rows, ended, adapters, tile, "cache", rowTiles);
  pass.tileAdapter.set(tiles);
  pass.bounds.fill(NOTHING_SEEN, 2 * rowTiles * tile.rows);
  for (let row = rowTiles * tile.rows; row < pass.ids.length; row++) pass.bounds[2 * row + 1] = 0;
  let targets = 0;
  for (const of of sequences) {
    const { adapter, ids, firstRow, isLong = false, isPrompt = false, isTiled = false, follows = 0 } = of;
    const [[from, until], length] = [rowsOf(of), lengthOf(of)];
    const own = (isTiled ? byTile : byRow)!.get(adapter)!;
    const seen = isPrompt ? ~firstRow : firstRow;
    for (let at = from; at < until; at++) {
      const row = own.first + rowIndex(own.used++, tile);
      putRow(pass, row, ids[at] ?? ~follows, isLong ? ~at : at, [seen, firstRow + at + 1], firstRow + at);
      if (at === length - 1) putTarget(pass, targets++, row, tile);
    }
  }
  return pass;
}

const lengthOf = ({ ids, follows }: GeneratedSequence): number => ids.length + (follows === undefined ? 0 : 1);

/** In place of the first row that a row sees: it is read together with others that see nothing. */
const NOTHING_SEEN = ~0;

/** Rows that attend to nothing and are kept nowhere, with room for a target of each sequence. */
function padding(
  rows: number,
  sequences: readonly GeneratedSequence[],
  adapters: number,
  tile: Tile,
  from: "pass" | "cache",
  rowTiles: number,
): GenerationBatch {
  const tables = paddingTables({ rows, targets: tiledRows(sequences.length, tile), adapters, rowTile: tile.rows });
  if (from === "cache") tables.bounds.fill(0);
  const places = new Int32Array(rows).fill(-1);
  return { ...tables, from, places, pages: new Int32Array(0), choices: choicesOf(sequences), rowTiles };
}

function putRow(
  pass: GenerationBatch,
  row: number,
  id: number,
  position: number,
  bounds: readonly [number, number],
  place: number,
): void {
  pass.ids[row] = id;
  pass.positions[row] = position;
  pass.bounds[2 * row] = bounds[0];
  pass.bounds[2 * row + 1] = bounds[1];
  pass.places[row] = place;
}

/** The logits of a row are the `i`th sequence's: its target is at a place where sums have the same order. */
function putTarget(pass: GenerationBatch, i: number, row: number, tile: Tile): void {
  pass.targetRows[rowIndex(i, tile)] = row;
}
