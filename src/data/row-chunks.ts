// Rows of a file, some at a time: what one thread reads at a go, and what becomes of it.

import type { DataFile } from "./data-file.ts";
import type { DatasetRecipe } from "./dataset.ts";
import { checkIds, fitRow, sequencesOf } from "./fit-row.ts";
import type { SettledForm } from "./format.ts";
import { type Parsed, placeOf, type ReadRow, RowFault, type RowRead } from "./jsonl.ts";
import { type Notice, NoticeBook } from "./notices.ts";
import { rowReader } from "./row-reader.ts";
import { RowPacker, type Sample } from "./rows.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Faults of a file that are reported before the rest is left unread. */
export const SHOWN = 5;
/** Bytes and rows of a chunk, at most, unless one row is longer: some hundredths of a second. */
const [CHUNK_BYTES, CHUNK_ROWS] = [1 << 18, 1 << 10];

export type RowCounts = { rows: number; truncated: number; dropped: number };

/** What became of some rows of a file; `faults` of the first SHOWN that have one, with their places. */
export type ReadChunk = {
  readonly samples: readonly Sample[];
  readonly counts: Readonly<RowCounts>;
  readonly notices: readonly Notice[];
  readonly faults: readonly string[];
};

/** All that decides what becomes of a row. */
export type RowReading = {
  readonly file: DataFile;
  readonly recipe: DatasetRecipe;
  readonly vocab: number;
  readonly settled: SettledForm;
};

/** As many of the rows that are left as a chunk has, `most` of them at most; `note` is called with each. */
export function* taken(rows: Iterator<ReadRow>, most: number, note: (row: ReadRow) => void): Generator<ReadRow> {
  for (let i = 0; i < Math.min(most, CHUNK_ROWS); i++) {
    const { done, value } = rows.next();
    if (done) return;
    note(value);
    yield value;
  }
}

/** Rows together, in order; `room`: how many there may be at most, asked for each chunk, and none end the reading. */
export function* chunksOfRows(rows: Iterable<ReadRow>, room: () => number): Generator<readonly ReadRow[]> {
  let [chunk, bytes, most]: [ReadRow[], number, number] = [[], 0, Math.min(room(), CHUNK_ROWS)];
  for (const row of rows) {
    if (most === 0) return;
    chunk.push(row);
    bytes += row.json?.bytes.length ?? 0;
    if (chunk.length < most && bytes < CHUNK_BYTES) continue;
    yield chunk;
    [chunk, bytes, most] = [[], 0, Math.min(room(), CHUNK_ROWS)];
  }
  if (chunk.length > 0) yield chunk;
}

/** Reads, templates, tokenises and cuts rows of a file. Throws RequestErrors of what is no row's fault. */
export function chunkReader(
  { file, recipe, vocab, settled }: RowReading,
  tokenizer: Tokenizer,
  begin: RowRead = () => undefined,
) {
  const toRows = rowReader(recipe, tokenizer, settled);
  return (rows: Iterable<Omit<ReadRow, "json">>): ReadChunk => {
    const packer = new RowPacker(file.name);
    const book = new NoticeBook();
    const faults: string[] = [];
    const counts = { rows: 0, truncated: 0, dropped: 0 };
    for (const { line, bytes, read } of rows) {
      const source = { file: file.name, line };
      begin(source, bytes);
      const row: Parsed | null = read();
      if (row === null) continue;
      counts.rows++;
      try {
        if ("fault" in row) throw new RowFault(row.fault);
        let [isCut, isKept] = [false, false];
        for (const tokenised of toRows(row.fields, source, book)) {
          for (const { ids } of sequencesOf(tokenised)) checkIds(ids, vocab);
          const { sample, cut } = fitRow(tokenised, source, recipe, book);
          if (!sample) continue;
          isCut ||= cut;
          isKept = true;
          packer.push(sample);
        }
        if (isCut) counts.truncated++;
        if (!isKept) counts.dropped++;
      } catch (error) {
        if (!(error instanceof RowFault)) throw error;
        faults.push(`${placeOf(source)}: ${error.message}`);
        if (faults.length === SHOWN) break;
      }
    }
    begin(null, 0);
    return { samples: packer.rows, counts, notices: book.notices, faults };
  };
}
