// What a pass must know of adapters that train embedding or head, as tables on the device. It follows from the batch's own
// tables and from the adapters, so that it is made on the stage that has the table.

import type { DType } from "../../base/dtype.ts";
import { alignUp, range } from "../../base/shape.ts";
import { firstRows } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { TableKind } from "../../methods/tables.ts";
import type { RankSpan } from "../../ops/linear/low-rank.ts";
import type { Runs } from "../../ops/tables.ts";
import type { BatchTables } from "../../schedule/micro-batch.ts";
import type { StageSizes } from "../layers/buffers.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";
import type { TableSite } from "./target-group.ts";

/** Elements of i32: kernels take each table to begin at a multiple of 16 bytes. */
const ALIGNED = 4;

type Take = (dtype: DType, ...shape: number[]) => Tensor;
type Sizes = Pick<StageSizes, "rows" | "targets" | "chunk" | "low" | "slots"> & { readonly rowTile: number };

/** Of the embedding in a pass. */
export type EmbeddingBatch = {
  readonly site: TableSite;
  readonly tileAdapter: Tensor;
  /** Of s = B[id], none where no adapter has a product. */
  readonly lowAt: Tensor;
  readonly elements: number;
  readonly span: RankSpan;
  /** i32[M]: of each row the number of its token among those that its adapter trains, or -1. */
  readonly tokenRow: Tensor;
  /** Rows that add to the gradient of B, where each begins in s, and to those of tokens, where each begins in the stream. */
  readonly products: Runs;
  readonly rows: Runs;
};

/** The tables of some tiles of targets. */
export type TargetTiles = { readonly tileAdapter: Tensor; readonly lowAt: Tensor };

/** Of the head in a pass. */
export type HeadBatch = {
  readonly site: TableSite;
  /** Adapters that act in the pass: their ranks or tokens, and the ranks of those with a product. */
  readonly span: RankSpan;
  readonly upSpan: RankSpan | null;
  /** Trained tokens of an adapter at most; 0 for none. */
  readonly mostTokens: number;
  /** Of each tile of targets the columns of its rows of s, and whether they are a product's. */
  readonly tiles: readonly { readonly width: number; readonly isProduct: boolean }[];
  /** i32[T]: the number of each target's row, for dropout; i32[L, 4], in which adapters of tokens drop nothing. */
  readonly numbers: Tensor;
  readonly dropout: Tensor;
  /** Of the chunk that begins at this tile, with its s from element 0 on. */
  readonly chunkAt: (tile: number, tiles: number) => TargetTiles;
  /** Of one tile, likewise. */
  readonly tileAt: (tile: number) => TargetTiles;
};

export type TableBatchMemory = ReturnType<typeof takeTableBatch>;

/** Memory for the largest pass; null for a table that no adapter changes. */
export function takeTableBatch(take: Take, { rows, targets, chunk, low, slots, rowTile }: Sizes) {
  const pitch = chunkPitch(chunk, rowTile);
  const chunks = Math.ceil(targets / chunk);
  const runs = () => ({ at: take("i32", rows), runs: take("i32", rows, 4) });
  return {
    embedding: low.embedding
      ? { lowAt: take("i32", Math.ceil(rows / rowTile)), tokenRow: take("i32", rows), products: runs(), rows: runs() }
      : null,
    head: low.head
      ? {
          pitch,
          chunkTiles: chunk / rowTile,
          chunks: take("i32", chunks * pitch),
          chunkLow: take("i32", chunks * pitch),
          tiles: take("i32", Math.ceil(targets / rowTile), ALIGNED),
          numbers: take("i32", targets),
          dropout: take("i32", slots, 4),
          zero: take("i32", ALIGNED),
        }
      : null,
  };
}

const chunkPitch = (chunk: number, rowTile: number): number => alignUp(Math.ceil(chunk / rowTile), ALIGNED);

const tableOf = (pool: AdapterPool, slot: number, kind: TableKind) =>
  slot < 0 ? undefined : pool.layout(slot).tables[kind]?.table;

/** Null where no adapter of the pass changes the embedding. */
export function embeddingBatch(
  device: Device,
  pool: AdapterPool,
  memory: TableBatchMemory["embedding"],
  tables: Pick<BatchTables, "ids" | "tileAdapter">,
  tileAdapter: Tensor,
): EmbeddingBatch | null {
  const { ids, tileAdapter: tiles } = tables;
  if (!memory || !tiles.some((slot) => tableOf(pool, slot, "embedding"))) return null;
  const { rowTile } = device;
  const { starts, elements, span } = pool.lowRowsIn("embedding", tiles);
  const tokenRow = new Int32Array(ids.length).fill(-1);
  const found = { products: [] as Row[], rows: [] as Row[] };
  for (const [adapter, own] of Map.groupBy(tiles.keys(), (tile) => tiles[tile]!)) {
    const table = tableOf(pool, adapter, "embedding");
    if (!table) continue;
    const numbers = "tokens" in table ? new Map(table.tokens.map((id, i) => [id, i])) : null;
    const width = pool.lowWidth(adapter, "embedding");
    const into = numbers ? found.rows : found.products;
    for (const m of own.flatMap((tile) => range(rowTile).map((i) => tile * rowTile + i))) {
      const row = numbers ? numbers.get(ids[m]!) : ids[m]!;
      if (row === undefined) continue;
      if (numbers) tokenRow[m] = row;
      const tile = Math.floor(m / rowTile);
      const at = numbers ? m * pool.spec.hidden : 16 * starts[tile]! + (m - tile * rowTile) * width;
      into.push({ adapter, row, at });
    }
  }
  device.write(memory.tokenRow, tokenRow);
  device.write(memory.lowAt, starts);
  return {
    site: pool.tableSite("embedding"),
    ...{ tileAdapter, elements, span },
    lowAt: firstRows(memory.lowAt, tiles.length),
    tokenRow: firstRows(memory.tokenRow, ids.length),
    products: writeRuns(device, memory.products, found.products),
    rows: writeRuns(device, memory.rows, found.rows),
  };
}

/** A row that adds to `row` of an adapter's gradient what begins at element `at`. */
type Row = { readonly adapter: number; readonly row: number; readonly at: number };

/** Rows of one token of one adapter become a run, in their own order: a sum that is the same whatever else is in the pass. */
function writeRuns(device: Device, memory: Runs, rows: readonly Row[]): Runs {
  const sorted = rows.toSorted((a, b) => a.adapter - b.adapter || a.row - b.row || a.at - b.at);
  const runs: number[] = [];
  for (const [i, { adapter, row }] of sorted.entries()) {
    const isNext = i === 0 || sorted[i - 1]!.adapter !== adapter || sorted[i - 1]!.row !== row;
    if (isNext) runs.push(i, i, adapter, row);
    runs[runs.length - 3] = i + 1;
  }
  if (runs.length > 0) {
    const starts = sorted.map(({ at }) => at);
    device.write(memory.at, Int32Array.from(starts));
    device.write(memory.runs, Int32Array.from(runs));
  }
  return { at: firstRows(memory.at, sorted.length), runs: firstRows(memory.runs, runs.length / 4) };
}

/** Null where no adapter of the pass changes the head. */
export function headBatch(
  device: Device,
  pool: AdapterPool,
  memory: TableBatchMemory["head"],
  tables: Pick<BatchTables, "targetRows" | "rowNumber" | "tileAdapter" | "dropout">,
): HeadBatch | null {
  const { targetRows, rowNumber, tileAdapter, dropout } = tables;
  const { rowTile } = device;
  if (!memory || targetRows.length === 0 || !tileAdapter.some((slot) => tableOf(pool, slot, "head"))) return null;
  const { pitch, chunkTiles } = memory;
  // The adapter of a tile of targets is that of its rows.
  const slots = range(targetRows.length / rowTile).map((tile) => {
    const row = targetRows.subarray(tile * rowTile, (tile + 1) * rowTile).find((at) => at >= 0);
    return row === undefined ? -1 : tileAdapter[Math.floor(row / rowTile)]!;
  });
  const found = slots.map((slot) => tableOf(pool, slot, "head"));
  const tiles = found.map((table, tile) => ({
    width: table ? pool.lowWidth(slots[tile]!, "head") : 0,
    isProduct: table !== undefined && !("tokens" in table),
  }));
  const [chunks, low] = range(2).map(() => new Int32Array(memory.chunks.shape[0]!).fill(0)) as [Int32Array, Int32Array];
  chunks.fill(-1);
  const each = new Int32Array(ALIGNED * slots.length).fill(-1);
  let units = 0;
  for (const [tile, slot] of slots.entries()) {
    const own = tiles[tile]!.width > 0 ? slot : -1;
    if (tile % chunkTiles === 0) units = 0;
    const at = Math.floor(tile / chunkTiles) * pitch + (tile % chunkTiles);
    [chunks[at], low[at], each[tile * ALIGNED]] = [own, units, own];
    units += (tiles[tile]!.width / 16) * rowTile;
  }
  const masks = dropout.slice();
  for (const slot of new Set(slots)) {
    const table = tableOf(pool, slot, "head");
    if (table && "tokens" in table) masks.set([0, 0x3f800000], 4 * slot + 2); // threshold 0, and 1 as f32
  }
  const numbers = Int32Array.from(targetRows, (row) => (row < 0 ? 0 : rowNumber[row]!));
  for (const [to, values] of [
    [memory.chunks, chunks],
    [memory.chunkLow, low],
    [memory.tiles, each],
    [memory.numbers, numbers],
    [memory.dropout, masks],
    [memory.zero, new Int32Array(ALIGNED)],
  ] as const)
    device.write(to, values);
  const sizes = found.flatMap((table) => (table ? ["tokens" in table ? table.tokens.length : table.rank] : []));
  const ranks = found.flatMap((table) => (table && !("tokens" in table) ? [table.rank] : []));
  const tokens = found.flatMap((table) => (table && "tokens" in table ? [table.tokens.length] : []));
  const part = (of: Tensor, from: number, count: number): Tensor => ({ ptr: of.ptr + 4 * from, dtype: "i32", shape: [count] });
  return {
    site: pool.tableSite("head"),
    span: spanOf(sizes),
    upSpan: ranks.length > 0 ? spanOf(ranks) : null,
    mostTokens: Math.max(0, ...tokens),
    tiles,
    numbers: firstRows(memory.numbers, numbers.length),
    dropout: memory.dropout,
    chunkAt: (tile, count) => {
      const from = (tile / chunkTiles) * pitch;
      return { tileAdapter: part(memory.chunks, from, count), lowAt: part(memory.chunkLow, from, count) };
    },
    tileAt: (tile) => ({ tileAdapter: part(memory.tiles, tile * ALIGNED, 1), lowAt: part(memory.zero, 0, 1) }),
  };
}

const spanOf = (ranks: readonly number[]): RankSpan => ({ least: Math.min(...ranks), most: Math.max(...ranks) });
