// Where the rows of a file lie, found without parsing them, so that each can be read by itself: what a run needs of rows that
// its first steps train on before all are read.

import { closeSync, openSync, readSync } from "node:fs";
import { chunksOf } from "./bytes.ts";
import { type DataFile, formOf } from "./data-file.ts";
import { type Parsed, parseRow } from "./jsonl.ts";
import { parquetPlaces } from "./parquet.ts";
import { ints, Numbers } from "./rows.ts";

/** The rows of a file by their number. */
export interface RowPlaces extends Disposable {
  /** Of each row the line that it stands on. */
  readonly lines: Int32Array;
  /** About how long it is. */
  bytes(row: number): number;
  /** What stands there; null where that is no row after all. */
  read(row: number): Parsed | null;
}

/** Forms whose rows are lines. */
const LINES = ["jsonl", "ndjson", ""];

/**
 * Finds the rows of a file; yields now and then, as it takes a second for each gigabyte. Null where rows of its form have no
 * places that are found without parsing them.
 */
export function* placesOf({ name, path }: DataFile): Generator<void, RowPlaces | null> {
  if (formOf(name) === "parquet") return parquetPlaces(path);
  if (!LINES.includes(formOf(name))) return null;
  const places = yield* linesIn(path);
  return places && new LinePlaces(path, places);
}

type Lines = { readonly lines: Int32Array /** Of each row, and where the last one ends. */; readonly starts: Float64Array };

const [NEWLINE, LEAST_OTHER] = [0x0a, 0x80];
/** What a text is trimmed of. */
const SPACES: ReadonlySet<number> = new Set([0x20, 0x09, 0x0b, 0x0c, 0x0d]);
const MARK = [0xef, 0xbb, 0xbf];

/** Lines that are not blank; null where a line begins with what is neither ASCII nor a byte order mark: it may be a space. */
function* linesIn(path: string): Generator<void, Lines | null> {
  const starts = new Numbers((length) => new Float64Array(length));
  const lines = new Numbers(ints);
  let [before, start, line, isBlank] = [0, 0, 1, true];
  for (const chunk of chunksOf(path)) {
    for (let at = 0; at < chunk.length; ) {
      const byte = chunk[at]!;
      const isMark = before + at < MARK.length && byte === MARK[before + at];
      if (isBlank && (isMark || SPACES.has(byte))) at++;
      else if (isBlank && byte === NEWLINE) [at, start, line] = [at + 1, before + at + 1, line + 1];
      else if (isBlank && byte >= LEAST_OTHER) return null;
      else if (isBlank) {
        lines.push(line);
        starts.push(start);
        isBlank = false;
      }
      if (isBlank) continue;
      const end = chunk.indexOf(NEWLINE, at);
      if (end < 0) break;
      [at, start, line, isBlank] = [end + 1, before + end + 1, line + 1, true];
    }
    before += chunk.length;
    yield;
  }
  starts.push(before);
  return { lines: lines.values, starts: starts.values };
}

class LinePlaces implements RowPlaces {
  readonly lines: Int32Array;
  readonly #starts: Float64Array;
  readonly #fd: number;
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });

  constructor(path: string, { lines, starts }: Lines) {
    [this.lines, this.#starts] = [lines, starts];
    this.#fd = openSync(path, "r");
  }

  bytes(row: number): number {
    return this.#starts[row + 1]! - this.#starts[row]!;
  }

  /** Its line, and blank ones up to the next row's. */
  read(row: number): Parsed | null {
    const from = this.#starts[row]!;
    const bytes = new Uint8Array(this.bytes(row));
    let done = 0;
    for (let got = 1; done < bytes.length && got > 0; done += got)
      got = readSync(this.#fd, bytes, done, bytes.length - done, from + done);
    return parseRow(this.#decoder, { bytes: bytes.subarray(0, done), isElement: false });
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
