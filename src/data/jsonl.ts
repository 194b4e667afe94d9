// Rows of JSONL files, read in pieces: no file is held whole. What a row means is format.ts's.

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { RequestError, textOf } from "../base/errors.ts";
import { parseJson } from "./json.ts";

const CHUNK = 1 << 20;
/** Bytes. A file without line ends must fail here, not when memory is spent. */
const LONGEST_LINE = 64 << 20;
const NEWLINE = 0x0a;

/** Where a row stands; lines count from 1. */
export type Source = { readonly file: string; readonly line: number };
export type Fields = Readonly<Record<string, unknown>>;
/**
 * Told of each row before it is read, and with null when a file's rows are read: its place, the bytes of its file up to its
 * end, and those that the rows before take in memory.
 */
export type RowRead = (place: Source | null, bytes: number, held: number) => void;
export type Row = { readonly source: Source; readonly fields: Fields };

/** A row that cannot be used, and why: "has an empty 'completion'". The place is put before it. */
export class RowFault extends Error {}

export const placeOf = ({ file, line }: Source): string => `${file}:${line}`;

/** What a row holds, for a message: never longer than a line of a terminal. */
export const clip = (text: string): string => (text.length > 100 ? `${text.slice(0, 100)}...` : text);

/** Checks that a data file can be read at all. Throws a RequestError, `data.file`. */
export function checkDataFile(file: string): void {
  const stat = attempt(file, () => statSync(file));
  if (!stat.isFile()) throw unreadable(file, stat.isDirectory() ? "is a directory" : "is not a file");
  if (stat.size === 0) throw unreadable(file, "is empty");
}

/**
 * The rows of a file; blank lines are passed over. What cannot be parsed is yielded as a fault, so that others may follow.
 * `begin` is called for each line before it is parsed, and of the file's bytes up to its end.
 */
export function* rowsOf(
  file: string,
  begin: (place: Source, bytes: number) => void = () => undefined,
): Generator<Row | { readonly source: Source; readonly fault: string }> {
  const decoder = new TextDecoder("utf-8", { fatal: true }); // takes a byte order mark away
  let read = 0;
  for (const { line, bytes } of linesOf(file)) {
    const source = { file, line };
    read += bytes.length + 1;
    begin(source, read);
    const row = parse(decoder, bytes);
    if (row) yield { source, ...row };
  }
}

/** A line's fields, or what is wrong with it; null for a blank one. */
function parse(decoder: TextDecoder, bytes: Uint8Array): { readonly fields: Fields } | { readonly fault: string } | null {
  let text: string;
  try {
    text = decoder.decode(bytes).trim();
  } catch {
    return { fault: "is not UTF-8 text" };
  }
  if (text === "") return null;
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    const whole = text.startsWith("[") ? "; a row is one object on one line, not a list over several" : "";
    return { fault: `is no JSON (${clip(textOf(error))})${whole}` };
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return { fault: `is no JSON object: ${clip(text)}` };
  return { fields: value as Fields };
}

/** Lines of a file with their numbers, as bytes; without the line's end. */
function* linesOf(file: string): Generator<{ readonly line: number; readonly bytes: Uint8Array }> {
  const fd = attempt(file, () => openSync(file, "r"));
  try {
    const chunk = new Uint8Array(CHUNK);
    let begun: Uint8Array[] = []; // of a line whose end is not read yet
    let begunBytes = 0;
    let line = 1;
    for (;;) {
      const got = attempt(file, () => readSync(fd, chunk, 0, CHUNK, null));
      if (got === 0) break;
      const read = chunk.subarray(0, got);
      let from = 0;
      for (let end = read.indexOf(NEWLINE); end >= 0; end = read.indexOf(NEWLINE, from)) {
        yield { line: line++, bytes: Buffer.concat([...begun, read.subarray(from, end)]) };
        begun = [];
        begunBytes = 0;
        from = end + 1;
      }
      begun.push(read.slice(from));
      begunBytes += got - from;
      if (begunBytes > LONGEST_LINE)
        throw new RequestError(
          "data.row",
          `${placeOf({ file, line })}: is longer than ${LONGEST_LINE} bytes`,
          "write one JSON object a line",
        );
    }
    if (begunBytes > 0) yield { line, bytes: Buffer.concat(begun) };
  } finally {
    closeSync(fd);
  }
}

function attempt<T>(file: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    throw unreadable(file, missing ? "no such file" : `cannot be read: ${textOf(error)}`);
  }
}

const unreadable = (file: string, why: string): RequestError =>
  new RequestError(
    "data.file",
    `${file}: ${why}`,
    "data.train and data.eval name JSONL files; paths are relative to the recipe",
  );
