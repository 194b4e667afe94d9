// Packs the rows of a file in order, whichever threads read them.

import { statSync } from "node:fs";
import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import { rowKindOf } from "../objectives/registry.ts";
import { unreadRowsOf } from "./data-file.ts";
import type { ReadRow, RowRead, Source } from "./jsonl.ts";
import { mergedNotices, type Notice } from "./notices.ts";
import { chunkReader, chunksOfRows, type ReadChunk, type RowCounts, type RowReading, SHOWN, taken } from "./row-chunks.ts";
import type { RowPool } from "./row-pool.ts";
import type { RowPacker } from "./rows.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Told of rows: each before this thread reads it, and those that are read, of all threads, in order. */
export type ReadingWatch = {
  readonly begin?: RowRead;
  /**
   * The rows up to `last`, which ends at this byte of its file; `held`: bytes that the file's rows take; `isEven`: each of them
   * became one, since the call before.
   */
  readonly read?: (rows: {
    readonly last: Source;
    readonly bytes: number;
    readonly held: number;
    readonly isEven: boolean;
  }) => void;
};

/** A file that is to be read. */
export type FileReading = Omit<RowReading, "settled"> & {
  readonly tokenizer: Tokenizer;
  readonly watch: ReadingWatch;
  /** Rows that are read at most; null: all. */
  readonly most: number | null;
  /** Threads that read rows, too. */
  readonly pool: RowPool | null;
};

/** Rows that are asked for, from which on more threads pay. */
const POOL_ROWS = 1 << 11;
/** Chunks that may wait for the one before them. */
const MOST_PENDING = 32;

/** Throws a RequestError, `data.row`, with the first rows that are at fault. */
export function packRows(from: FileReading, packer: RowPacker) {
  const { file, most, pool } = from;
  const merged = new Merged(from, packer);
  const isLarge = pool !== null && (most === null || most >= POOL_ROWS) && statSync(file.path).size >= pool.leastBytes;
  if (isLarge && pool) readTogether(from, pool, merged);
  else readAlone(from, merged);
  return merged.finish();
}

/** What became of the rows so far. */
class Merged {
  readonly counts: RowCounts = { rows: 0, truncated: 0, dropped: 0 };
  readonly #notices: (readonly Notice[])[] = [];
  readonly #faults: string[] = [];

  constructor(
    private readonly from: FileReading,
    private readonly packer: RowPacker,
  ) {}

  /** What became of the rows that follow, the last of which is `row`. */
  add({ samples, counts, notices, faults }: ReadChunk, { line, bytes }: ReadRow): void {
    const { file, watch } = this.from;
    for (const count of ["rows", "truncated", "dropped"] as const) this.counts[count] += counts[count];
    this.#notices.push(notices);
    this.#faults.push(...faults);
    if (this.#faults.length >= SHOWN) throw this.#faulty();
    for (const sample of samples) this.packer.push(sample);
    const isEven = samples.length === counts.rows;
    watch.read?.({ last: { file: file.name, line }, bytes, held: this.packer.bytes, isEven });
  }

  finish() {
    if (this.#faults.length > 0) throw this.#faulty();
    return { counts: this.counts, notices: mergedNotices(this.#notices) };
  }

  #faulty(): RequestError {
    const shown = this.#faults.slice(0, SHOWN);
    const rest = shown.length === SHOWN ? "; later rows were not checked" : "";
    return new RequestError(
      "data.row",
      shown.join("\n"),
      `adapter '${this.from.recipe.name}': fix or remove the rows listed${rest}`,
    );
  }
}

function readAlone(from: FileReading, merged: Merged): void {
  const { file, recipe, vocab, tokenizer, watch, most } = from;
  const read = chunkReader({ file, recipe, vocab, settled: { format: recipe.format } }, tokenizer, watch.begin);
  const rows = unreadRowsOf(file);
  try {
    for (;;) {
      let last: ReadRow | null = null;
      const note = (row: ReadRow) => {
        last = row;
      };
      const chunk = read(taken(rows, most === null ? Number.POSITIVE_INFINITY : most - merged.counts.rows, note));
      if (last === null) break;
      merged.add(chunk, last);
    }
  } finally {
    rows.return(undefined);
  }
}

/** A chunk that is being read; `read` waits for what becomes of it. */
type Pending = { readonly rows: readonly ReadRow[]; readonly read: () => ReadChunk };

function readTogether(from: FileReading, pool: RowPool, merged: Merged): void {
  const { file, recipe, vocab, tokenizer, watch, most } = from;
  const reading: RowReading = { file, recipe, vocab, settled: { format: recipe.format } };
  const readHere = chunkReader(reading, tokenizer, watch.begin);
  /** The first row is yet to settle the form of all. */
  const isOpen = () => ["single", "prompt"].includes(rowKindOf(recipe.objective)) && reading.settled.format === "auto";
  const pending: Pending[] = [];
  let isMerging = false;
  const merge = ({ rows, read }: Pending): void => {
    isMerging = true;
    merged.add(read(), rows.at(-1)!);
    isMerging = false;
  };
  const mergeAll = (): void => {
    for (const chunk of pending.splice(0)) merge(chunk);
  };
  const room = (): number => {
    if (most === null) return Number.POSITIVE_INFINITY;
    const left = () => most - merged.counts.rows - sum(pending.map(({ rows }) => rows.length));
    if (left() === 0) mergeAll(); // blank lines are no rows
    return left();
  };
  pool.want();
  try {
    for (const rows of chunksOfRows(unreadRowsOf(file), room)) {
      const submitted = isOpen() ? null : pool.submit(reading, rows);
      const here = submitted ? null : readHere(rows);
      pending.push({ rows, read: submitted ?? (() => here!) });
      if (pending.length > MOST_PENDING) merge(pending.shift()!);
    }
  } catch (error) {
    if (!isMerging) mergeAll(); // what is wrong with rows before it comes first
    throw error;
  }
  mergeAll();
}
