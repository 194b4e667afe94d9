// Rows of JSONL files, read in pieces: no file is held whole.

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { RequestError, textOf } from "../base/errors.ts";

const CHUNK = 1 << 20;
const LONGEST_LINE = 64 << 20;

/** Where a row stands. */
export type Source = { readonly file: string; readonly line: number };
export type Row = { readonly source: Source; readonly fields: Readonly<Record<string, unknown>> };

/** A row that cannot be used, and why; `source` is put before it. */
export class RowFault extends Error {}

export const placeOf = ({ file, line }: Source): string => `${file}:${line}`;

/** Lines of a file with their numbers, as bytes; without the line's end. */
function* linesOf(file: string): Generator<{ readonly line: number; readonly bytes: Uint8Array }> {
  const fd = openSync(file, "r");
  try {
    const chunk = new Uint8Array(CHUNK);
    let rest: Uint8Array[] = [];
    let restBytes = 0;
    let line = 1;
    const take = (last: Uint8Array): Uint8Array => {
      const whole = rest.length === 0 ? last.slice() : Buffer.concat([...rest, last]);
      rest = [];
      restBytes = 0;
      return whole;
    };
    for (;;) {
      const got = readSync(fd, chunk, 0, CHUNK, null);
      if (got === 0) break;
      let from = 0;
      for (let end = chunk.indexOf(10); end >= 0 && end < got; end = chunk.indexOf(10, from)) {
        yield { line: line++, bytes: take(chunk.subarray(from, end)) };
        from = end + 1;
      }
      if (from < got) {
        rest.push(chunk.slice(from, got));
        restBytes += got - from;
      }
      if (restBytes > LONGEST_LINE)
        throw new RequestError(
          "data.row",
          `${file}:${line}: is longer than ${LONGEST_LINE} bytes`,
          "write one JSON object a line",
        );
    }
    if (rest.length > 0) yield { line, bytes: take(new Uint8Array(0)) };
  } finally {
    closeSync(fd);
  }
}

/** Checks that a data file can be read at all. */
export function checkDataFile(file: string): void {
  const stat = statSync(file, { throwIfNoEntry: false });
  const why = !stat ? "no such file" : !stat.isFile() ? "is not a file" : stat.size === 0 ? "is empty" : null;
  if (why)
    throw new RequestError(
      "data.file",
      `${file}: ${why}`,
      "data.train and data.eval name JSONL files; paths are relative to the recipe",
    );
}

/** The rows of a file; blank lines are passed over. What cannot be parsed is yielded as a fault, so that others may follow. */
export function* rowsOf(file: string): Generator<Row | { readonly source: Source; readonly fault: string }> {
  const decoder = new TextDecoder("utf-8", { fatal: true }); // takes a BOM away
  for (const { line, bytes } of linesOf(file)) {
    const source = { file, line };
    try {
      const text = decoder.decode(bytes).trim();
      if (text === "") continue;
      const fields: unknown = JSON.parse(text);
      if (typeof fields !== "object" || fields === null || Array.isArray(fields)) yield { source, fault: "is no JSON object" };
      else yield { source, fields: fields as Row["fields"] };
    } catch (error) {
      const fault = error instanceof SyntaxError ? `is no JSON: ${textOf(error)}` : "is not UTF-8 text";
      yield { source, fault };
    }
  }
}
