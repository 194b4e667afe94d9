// Rows of JSONL files, read in pieces: no file is held whole. What a row means is format.ts's.

import { RequestError, textOf } from "../base/errors.ts";
import { chunksOf } from "./bytes.ts";
import { keyTwice, parseJson } from "./json.ts";

/** Bytes. A file without line ends must fail here, not when memory is spent. */
export const LONGEST_ROW = 64 << 20;
const NEWLINE = 0x0a;

/** Where a row stands: its line, or its number in a Parquet file or a JSON list; both count from 1. */
export type Source = { readonly file: string; readonly line: number };
export type Fields = Readonly<Record<string, unknown>>;
/** Told of each row before it is read, with its file's bytes up to its end; and with null when none is read. */
export type RowRead = (place: Source | null, bytes: number) => void;
export type Row = { readonly source: Source; readonly fields: Fields };
/**
 * A row of a file, with the file's bytes up to its end; what cannot be parsed is a fault, so that others may follow. Null for
 * a blank line.
 */
export type ReadRow = {
  readonly line: number;
  readonly bytes: number;
  readonly read: () => Parsed | null;
  /** What the row is read from, where that is JSON: another thread can read it, too. */
  readonly json?: RowJson;
};
/** The bytes of a line, or of an element of a list. */
export type RowJson = { readonly bytes: Uint8Array; readonly isElement: boolean };
export type Parsed = { readonly fields: Fields } | { readonly fault: string };

/** A row that cannot be used, and why: "has an empty 'completion'". The place is put before it. */
export class RowFault extends Error {}

export const placeOf = ({ file, line }: Source): string => `${file}:${line}`;

/** What a row holds, for a message: never longer than a line of a terminal. */
export const clip = (text: string): string => (text.length > 100 ? `${text.slice(0, 100)}...` : text);

/** The rows of JSONL; blank lines are passed over. */
export function* jsonlRows(path: string): Generator<ReadRow> {
  const decoder = new TextDecoder("utf-8", { fatal: true }); // takes a byte order mark away
  let read = 0;
  for (const { line, bytes } of linesOf(path)) {
    read += bytes.length + 1;
    yield rowOfJson(decoder, { bytes, isElement: false }, line, read);
  }
}

export const rowOfJson = (decoder: TextDecoder, json: RowJson, line: number, bytes: number): ReadRow => {
  return { line, bytes, json, read: () => parseRow(decoder, json) };
};

const LINE = "; a row is one object on one line, not a list over several";
const NOTHING = { fault: "is missing: two commas follow each other" };

/** A row's fields, or what is wrong with it; null for a blank line. */
export function parseRow(decoder: TextDecoder, { bytes, isElement }: RowJson): Parsed | null {
  let text: string;
  try {
    text = decoder.decode(bytes).trim();
  } catch {
    return { fault: "is not UTF-8 text" };
  }
  if (text === "") return isElement ? NOTHING : null;
  let value: unknown;
  let fault: string | null;
  try {
    value = parseJson(text);
    fault = twiceIn(text, value);
  } catch (error) {
    return { fault: `is no JSON (${clip(textOf(error))})${text.startsWith("[") && !isElement ? LINE : ""}` };
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return { fault: `is no JSON object: ${clip(text)}` };
  if (fault !== null) return { fault };
  return { fields: value as Fields };
}

/** What is wrong where an object in a JSON text has a key twice, of which parsers take the last alone; null where none has. */
export function twiceIn(text: string, value: unknown): string | null {
  const twice = keyTwice(text, value);
  return twice === null ? null : `has the key '${clip(twice)}' twice in one object: leave one out`;
}

/** Lines of a file with their numbers, as bytes; without the line's end. */
function* linesOf(path: string): Generator<{ readonly line: number; readonly bytes: Uint8Array }> {
  let begun: Uint8Array[] = []; // of a line whose end is not read yet
  let begunBytes = 0;
  let line = 1;
  for (const read of chunksOf(path)) {
    let from = 0;
    for (let end = read.indexOf(NEWLINE); end >= 0; end = read.indexOf(NEWLINE, from)) {
      yield { line: line++, bytes: Buffer.concat([...begun, read.subarray(from, end)]) };
      begun = [];
      begunBytes = 0;
      from = end + 1;
    }
    begun.push(read.slice(from));
    begunBytes += read.length - from;
    if (begunBytes > LONGEST_ROW) throw tooLong({ file: path, line });
  }
  if (begunBytes > 0) yield { line, bytes: Buffer.concat(begun) };
}

export const tooLong = (source: Source): RequestError =>
  new RequestError("data.row", `${placeOf(source)}: is longer than ${LONGEST_ROW} bytes`, "write one JSON object a line");
