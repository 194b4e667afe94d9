// A pass that extends sequences by a token: a row each, with its own adapter, in place of a tile of rows for each adapter.
//
// Its tables lie next to each other, so that one copy brings them to the device; all launches of a pass of as many rows and the
// same ranks are the same, so that a device may repeat them as a record.

import { invariant } from "../../base/errors.ts";
import { expertFormatOf, type HeldWeights } from "../../base/precision.ts";
import { alignUp, range, sum } from "../../base/shape.ts";
import { firstRows, rowsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { readsExperts } from "../../device/fewrows.ts";
import type { Operation } from "../../families/definition.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { PEFT_METHODS } from "../../methods/registry.ts";
import { chooseTokens } from "../../ops/choose.ts";
import { TILE_ROWS } from "../../ops/decode.ts";
import { rowsGather } from "../../ops/embed.ts";
import { fewRowsNorm } from "../../ops/fewrows/fused.ts";
import { fewRowsForward } from "../../ops/fewrows.ts";
import { fewHead } from "../../ops/fewtables.ts";
import { type BatchTables, eachTable as eachOfBatch, type GenerationBatch } from "../../schedule/micro-batch.ts";
import type { Ground } from "../head/contrast.ts";
import type { Batch } from "../layers/batch.ts";
import type { Program } from "../layers/program.ts";
import { COMPUTATIONS } from "../methods/registry.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";
import { rowsFor } from "./kv-cache.ts";
import { adaptedTables, keyOf, trainedTokens } from "./row-tables.ts";

/**
 * A row of a pass of tiles: its place there, the slot of its adapter or -1, and the sequence whose next token follows it, -1
 * for none.
 */
export type SequenceRow = {
  readonly row: number;
  readonly adapter: number;
  readonly sequence: number;
  /** The first row of the prompt that is read in a tile with it; null where it is extended by itself. */
  readonly prompt: number | null;
};

/** Operations whose rows depend on no table of tiles and no other row but keys that are kept. */
const BY_ROW: ReadonlySet<Operation["op"]> = new Set([
  ...(["norm", "spans", "linears", "rope", "attention", "gate", "swiglu", "squaredRelu", "geglu"] as const),
  ...(["valueNorm", "keepKv", "sharedKv", "scale", "experts", "perLayer"] as const),
  ...(["ungated", "convolution", "deltaRule", "gatedNorm", "tokenGate", "shortConvolution"] as const),
  ...(["stateSpace", "groupNorm", "regroup", "columns", "latentHeads", "narrow"] as const),
]);

/** Whether a device that has products over few rows extends sequences of this model so; a pass of tiles does otherwise. */
export const extendsByRow = (program: Program, { compute }: Pick<Device, "compute">, held: HeldWeights): boolean =>
  held.format !== "nf4-fp8" && // which products over few rows do not read
  program.every(({ operations }) =>
    operations.every(
      (of) => BY_ROW.has(of.op) && (of.op !== "experts" || readsExperts(compute, expertFormatOf(held), [of.up.in, of.down.in])),
    ),
  );

/** Methods that make their factors before each use. */
const EXPANDING = PEFT_METHODS.filter((method) => COMPUTATIONS[method].expansion);

/** Whether an adapter is a low-rank product of two factors, with or without a gain. */
export const isByRow = ({ method = "lora" }: PoolAdapter): boolean => COMPUTATIONS[method].rows?.areGains !== false;

/**
 * The rows of a pass over the cache that are not multiplied by tiles of an adapter: those that are extended by themselves, then
 * those of prompts, of both an adapter's next to each other.
 */
export const sequenceRows = (batch: GenerationBatch, rowTile: number, pool: AdapterPool): SequenceRow[] =>
  rowsOf(batch, rowTile, (adapter) => adapter < 0 || isByRow(pool.adapter(adapter)!), 0, batch.rowTiles);

/** Rows of these adapters (-1: of none) in tiles `from` .. `until` - 1, in the same order. */
export function rowsOf(
  batch: GenerationBatch,
  rowTile: number,
  isWanted: (adapter: number) => boolean,
  from = 0,
  until = batch.tileAdapter.length,
): SequenceRow[] {
  const { places, targetRows, tileAdapter } = batch;
  const sequenceOf = new Int32Array(places.length).fill(-1);
  let sequence = 0;
  for (let target = 0; target < targetRows.length; target++)
    if (targetRows[target]! >= 0) sequenceOf[targetRows[target]!] = sequence++;
  const rows: SequenceRow[] = [];
  for (let tile = from; tile < until; tile++) {
    const adapter = tileAdapter[tile]!;
    if (!isWanted(adapter)) continue;
    for (let row = tile * rowTile; row < (tile + 1) * rowTile; row++)
      if (places[row]! >= 0) {
        const first = batch.bounds[2 * row]!;
        rows.push({ row, adapter, sequence: sequenceOf[row]!, prompt: first < 0 ? first : null });
      }
  }
  const isApart = ({ prompt }: SequenceRow) => prompt === null;
  return [...rows.filter(isApart), ...rows.filter((of) => !isApart(of))]; // tiles are in the order of the adapters
}

/** The tiles of rows that are read together, as attention_decode has them, from the bounds of rows. */
export function tilesOf(bounds: Int32Array): Int32Array<ArrayBuffer> {
  const tiles: number[] = [];
  for (let m = 0; 2 * m < bounds.length; m++) {
    const first = bounds[2 * m]!;
    if (first >= 0) continue;
    const [isNext, count] = [m > 0 && first === bounds[2 * m - 2], tiles.at(-1) ?? 0];
    if (isNext && count < TILE_ROWS) tiles[tiles.length - 1] = count + 1;
    else tiles.push(m, 1);
  }
  return Int32Array.from(tiles);
}

/** The number of tiles that tilesOf makes of rows. */
function countTiles(rows: readonly SequenceRow[]): number {
  let [tiles, count] = [0, 0];
  for (let i = 0; i < rows.length; i++) {
    const { prompt } = rows[i]!;
    if (prompt === null) continue;
    const isNext = i > 0 && prompt === rows[i - 1]!.prompt && count < TILE_ROWS;
    count = isNext ? count + 1 : 1;
    if (!isNext) tiles++;
  }
  return tiles;
}

/** The same pass without these rows, and without tiles that have no others; null where none is left. */
export function withoutRows(batch: GenerationBatch, rows: readonly SequenceRow[], rowTile: number): GenerationBatch | null {
  if (batch.places.reduce((count, place) => count + (place >= 0 ? 1 : 0), 0) === rows.length) return null;
  const gone = new Set(rows.map(({ row }) => row));
  const [bounds, places, targetRows] = [batch.bounds.slice(), batch.places.slice(), batch.targetRows.slice()];
  const tileAdapter = batch.tileAdapter.slice();
  for (const { row, adapter } of rows) {
    bounds.fill(0, 2 * row, 2 * row + 2);
    places[row] = -1;
    if (adapter >= 0) tileAdapter[Math.floor(row / rowTile)] = -1;
  }
  for (const [target, row] of targetRows.entries()) if (gone.has(row)) targetRows[target] = -1;
  const ended = new Set(rows.map(({ sequence }) => sequence));
  const kept = range(batch.choices.topK.length).filter((i) => !ended.has(i));
  const { temperature, topK, topP, uniform, logits } = batch.choices;
  const floats = (of: Float32Array) => Float32Array.from(kept, (i) => of[i]!);
  const ints = (of: Int32Array) => Int32Array.from(kept, (i) => of[i]!);
  const choices = {
    ...{ temperature: floats(temperature), topP: floats(topP), uniform: floats(uniform) },
    ...{ topK: ints(topK), logits: ints(logits) },
  };
  return withoutTiles({ ...batch, bounds, places, targetRows, tileAdapter, choices }, rowTile);
}

/** The same pass without tiles of rows and of targets that belong to no sequence. */
function withoutTiles(batch: GenerationBatch, rowTile: number): GenerationBatch {
  const used = (values: Int32Array) =>
    range(values.length / rowTile).filter((tile) =>
      values.subarray(tile * rowTile, (tile + 1) * rowTile).some((of) => of >= 0),
    );
  const tiles = { row: used(batch.places), target: used(batch.targetRows) };
  const cut = <T extends Int32Array | Float32Array>(values: T, kept: readonly number[], words: number): T => {
    const found = new (values.constructor as new (size: number) => T)(kept.length * words);
    for (const [i, tile] of kept.entries()) found.set(values.subarray(tile * words, (tile + 1) * words), i * words);
    return found;
  };
  const tables = eachOfBatch((name, { each, width }) => {
    const values = batch[name];
    if (each === "slot") return values;
    return each === "tile" ? cut(values, tiles.row, width) : cut(values, tiles[each], rowTile * width);
  }) as BatchTables;
  const now = new Map(tiles.row.map((tile, i) => [tile, i]));
  /** Where a row of the pass is now; those of tiles that are gone stay. */
  const placeOf = (row: number): number =>
    (now.get(Math.floor(row / rowTile)) ?? Math.floor(row / rowTile)) * rowTile + (row % rowTile);
  for (const [target, row] of tables.targetRows.entries()) if (row >= 0) tables.targetRows[target] = placeOf(row);
  if (batch.from === "pass") {
    const { bounds } = tables; // rows of the pass, of a sequence whose tiles follow each other
    for (let i = 0; i < bounds.length; i += 2) {
      const [first, end] = [bounds[i]!, bounds[i + 1]!];
      bounds[i] = placeOf(first);
      bounds[i + 1] = bounds[i]! + end - first;
    }
  }
  const rowTiles = tiles.row.filter((tile) => tile < batch.rowTiles).length;
  return { ...batch, ...tables, places: cut(batch.places, tiles.row, rowTile), rowTiles };
}

/** Words of each row, of each target and of each tile in all tables, which lie one after the other. */
const TABLES = {
  bounds: ["row", 2],
  ids: ["row", 1],
  positions: ["row", 1],
  places: ["row", 1],
  rowAdapter: ["row", 1],
  tokenRow: ["row", 1],
  source: ["row", 1],
  settings: ["target", 4],
  targetRows: ["target", 1],
  targetAdapter: ["target", 1],
  which: ["slot", 1],
  tiles: ["tile", 2],
} as const satisfies Readonly<Record<string, readonly [keyof Sizes, number]>>;
type Name = keyof typeof TABLES;
const wordsOf = (each: keyof Sizes): number =>
  Object.values(TABLES).reduce((all, [of, words]) => all + (of === each ? words : 0), 0);

/** Memory for the tables of as many rows, sequences and slots. */
export const takeRowTables = (
  take: (dtype: "i32", ...shape: number[]) => Tensor,
  { rows, sequences, slots }: { readonly rows: number; readonly sequences: number; readonly slots: number },
): Tensor => {
  const ofRows = (wordsOf("row") + wordsOf("tile")) * alignUp(rows, 128);
  return take("i32", ofRows + wordsOf("target") * rowsFor(sequences) + EXPANDING.length * alignUp(slots, ALIGNED));
};

/** Elements of i32: kernels take each table to begin at a multiple of 16 bytes. */
const ALIGNED = 4;

/** Rows, targets, slots of methods that make their factors, and tiles of a pass; without a target there is no head. */
type Sizes = { readonly row: number; readonly target: number; readonly slot: number; readonly tile: number };
const sizesOf = (rows: readonly SequenceRow[], pool: AdapterPool): Sizes => {
  let targets = 0;
  for (let i = 0; i < rows.length; i++) if (rows[i]!.sequence >= 0) targets++;
  const slot = expandingIn(rows, pool).size * alignUp(pool.slots, ALIGNED);
  const tiles = countTiles(rows); // those beyond have no rows
  const [target, tile] = [targets, tiles].map((count) => (count === 0 ? 0 : rowsFor(count))) as [number, number];
  return { row: rowsFor(rows.length), target, slot, tile };
};

const expandingIn = (rows: readonly SequenceRow[], pool: AdapterPool) =>
  pool.expanding(new Set(rows.map(({ adapter }) => adapter)));

/** Something for each table, by its first word, its entries and the words of each. */
function eachTable<T>(sizes: Sizes, make: (begin: number, entries: number, words: number) => T): Readonly<Record<Name, T>> {
  let begin = 0;
  const found: Partial<Record<Name, T>> = {};
  for (const [name, [each, words]] of Object.entries(TABLES)) {
    found[name as Name] = make(begin, sizes[each], words);
    begin += sizes[each] * words;
  }
  return found as Record<Name, T>;
}

/**
 * The tables on the host: rows that are no sequence's attend to nothing and are kept nowhere. `targetOf`: where the pass before
 * chose for its sequences.
 */
export function rowTables(
  batch: GenerationBatch,
  positions: Int32Array,
  rows: readonly SequenceRow[],
  pool: AdapterPool,
  targetOf: Int32Array,
): Int32Array {
  const sizes = sizesOf(rows, pool);
  const words = new Int32Array(sum((["row", "target", "slot", "tile"] as const).map((each) => wordsOf(each) * sizes[each])));
  const values = new Float32Array(words.buffer);
  const at = eachTable(sizes, (begin) => begin);
  for (const name of ["places", "rowAdapter", "tokenRow", "source", "targetRows", "targetAdapter"] as const)
    words.fill(-1, at[name], at[name] + sizes[TABLES[name][0]]);
  const { temperature, topK, topP, uniform } = batch.choices;
  const numberOf = trainedTokens(pool);
  let target = 0;
  for (let i = 0; i < rows.length; i++) {
    const { sequence, row, adapter } = rows[i]!;
    words[at.bounds + 2 * i] = batch.bounds[2 * row]!;
    words[at.bounds + 2 * i + 1] = batch.bounds[2 * row + 1]!;
    const id = batch.ids[row]!;
    if (id >= 0) words[at.ids + i] = id;
    else {
      const target = targetOf[~id] ?? -1;
      invariant(target >= 0, `a row follows sequence ${~id}, for which the pass before chooses nothing`);
      words[at.source + i] = target;
    }
    words[at.positions + i] = positions[row]!;
    words[at.places + i] = batch.places[row]!;
    words[at.rowAdapter + i] = adapter;
    words[at.tokenRow + i] = numberOf(adapter, id);
    if (sequence < 0) continue;
    const setting = at.settings + 4 * target;
    values[setting] = temperature[sequence]!;
    values[setting + 1] = topK[sequence]!;
    values[setting + 2] = topP[sequence]!;
    values[setting + 3] = uniform[sequence]!;
    words[at.targetAdapter + target] = adapter;
    words[at.targetRows + target++] = i;
  }
  for (const [i, slots] of [...expandingIn(rows, pool).values()].entries())
    words.set(slots, at.which + i * alignUp(pool.slots, ALIGNED));
  words.set(tilesOf(words.subarray(at.bounds, at.bounds + 2 * rows.length)), at.tiles);
  return words;
}

const NOTHING: Tensor = { ptr: 0, dtype: "i32", shape: [0] };

/** The pass on the device, its tables in `memory`. */
export function rowBatch(memory: Tensor, pool: AdapterPool, of: readonly SequenceRow[]) {
  const sizes = sizesOf(of, pool);
  const tables = eachTable(sizes, (begin, entries, words): Tensor => {
    return { ptr: memory.ptr + 4 * begin, dtype: "i32", shape: words === 1 ? [entries] : [entries, words] };
  });
  const expanding = new Map(
    [...expandingIn(of, pool).keys()].map((method, i) => {
      const which = { ...rowsFrom(tables.which, i * alignUp(pool.slots, ALIGNED), pool.slots) };
      return [method, { which, table: pool.tableOf(method) }] as const;
    }),
  );
  const { settings, bounds, ids, positions, places, rowAdapter, source, targetRows, tiles } = tables;
  const ofTables = adaptedTables(pool, new Set(of.map(({ adapter }) => adapter)), tables);
  const found = pool.lowRows(Int32Array.from(new Set(of.map(({ adapter }) => adapter))));
  const hasGains = of.some(({ adapter }) => adapter >= 0 && COMPUTATIONS[pool.adapter(adapter)!.method ?? "lora"].rows);
  const low = new Map(
    [...found].map(([group, { span, outer }]) => [group, { lowAt: NOTHING, elements: 0, span, outer, hasGains }] as const),
  );
  // Only what a forward pass of rows reads is there.
  const batch: Batch = {
    ...{ rows: sizes.row, ids, positions, bounds, rowAdapter, low, presence: new Map(), expanding },
    ...{
      targets: sizes.target,
      targetRows,
      targetIds: NOTHING,
      weights: NOTHING,
      sharpness: NOTHING,
      loss: NOTHING,
      isCorrect: NOTHING,
    },
    ...{ rowNumber: NOTHING, tileAdapter: NOTHING, dropout: NOTHING, embedding: null, head: null, ofTables },
  };
  const spans = [...low].map(([group, { span }]) => `${group} ${span.least} ${span.most}`);
  const made = [...expanding.keys(), keyOf(ofTables)].join(" ");
  const key = `${sizes.row} rows, ${sizes.target} targets, ${sizes.tile} tiles${hasGains ? ", gains" : ""}, ${made}: ${spans}`;
  return { batch, places, source, tiles: sizes.tile > 0 ? tiles : null, settings: { ...settings, dtype: "f32" as const }, key };
}

/** Logits c[rows, V] of a pass as the head has them, a chunk of targets at a time: each is in the place of the last. */
function* targetLogits({ device, head, buffers, hidden }: Ground, { targets, targetRows, ofTables }: Batch) {
  const adapted = ofTables?.head ?? null;
  const [x, h, rstd] = [buffers.x, buffers.h, buffers.rstd].map((t) => firstRows(t, targets)) as [Tensor, Tensor, Tensor];
  rowsGather(device, { x: hidden, rows: targetRows, y: x });
  fewRowsNorm(device, { x, weight: head.norm, residual: null, y: h, rstd, eps: head.eps });
  const chunk = buffers.logits.shape[0]!;
  for (let from = 0; from < targets; from += chunk) {
    const y = firstRows(buffers.logits, Math.min(chunk, targets - from));
    const x = rowsFrom(h, from, y.shape[0]!);
    const lora = adapted && { ...adapted, rowAdapter: rowsFrom(adapted.rowAdapter, from, y.shape[0]!) };
    if (lora) fewHead(device, { x, weight: head.weight, y, lora });
    else fewRowsForward(device, { x, weight: head.weight, bias: null, residual: null, y, lora: null });
    yield { from, y };
  }
}

/** Chooses the next token of each target; yields the logits of each chunk of them. */
export function* chooseByRow(ground: Ground, batch: Batch, settings: Tensor, chosen: Tensor) {
  const { classes, scale, cap } = ground.head;
  for (const { from, y } of targetLogits(ground, batch)) {
    const part = (t: Tensor) => rowsFrom(t, from, y.shape[0]!);
    const io = { logits: y, targets: part(batch.targetRows), settings: part(settings), chosen: part(chosen) };
    chooseTokens(ground.device, { ...io, classes, scale, cap: cap ?? 0 });
    yield { from, y };
  }
}
