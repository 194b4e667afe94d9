// Rows of .json files: the objects of one list, read one by one so that no file is held whole; or JSONL under another name.

import { RequestError } from "../base/errors.ts";
import { counted } from "../base/units.ts";
import { chunksOf } from "./bytes.ts";
import { jsonlRows, LONGEST_ROW, type ReadRow, rowOfJson, tooLong } from "./jsonl.ts";

const [OPEN, CLOSE, COMMA, QUOTE, ESCAPE] = [0x5b, 0x5d, 0x2c, 0x22, 0x5c];
const [OPEN_OBJECT, CLOSE_OBJECT] = [0x7b, 0x7d];
const SPACES: ReadonlySet<number> = new Set([0x20, 0x09, 0x0a, 0x0d]);

export function* jsonRows(path: string): Generator<ReadRow> {
  yield* isList(path) ? listRows(path) : jsonlRows(path);
}

const MARK = [0xef, 0xbb, 0xbf];
const isMark = (bytes: Uint8Array): boolean => MARK.every((byte, i) => bytes[i] === byte);

/** Whether the first byte that says something begins a list. */
function isList(path: string): boolean {
  let first = true;
  for (const chunk of chunksOf(path)) {
    const from = first && isMark(chunk) ? MARK.length : 0;
    first = false;
    const said = chunk.subarray(from).find((byte) => !SPACES.has(byte));
    if (said !== undefined) return said === OPEN;
  }
  return false;
}

/** The elements of the list; their numbers stand for lines. */
function* listRows(path: string): Generator<ReadRow> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const row = (bytes: Uint8Array, line: number, read: number) => rowOfJson(decoder, { bytes, isElement: true }, line, read);
  let [depth, inString, escaped, done, rows, before] = [0, false, false, false, 0, 0];
  let element: Uint8Array[] = [];
  let elementBytes = 0;
  for (const chunk of chunksOf(path)) {
    let from = 0;
    const take = (to: number): void => {
      element.push(chunk.slice(from, to));
      elementBytes += to - from;
      from = to + 1;
      if (elementBytes > LONGEST_ROW) throw tooLong({ file: path, line: rows + 1 });
    };
    const whole = (): Uint8Array => {
      const bytes = Buffer.concat(element);
      [element, elementBytes] = [[], 0];
      return bytes;
    };
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at]!;
      if (inString) {
        if (escaped) escaped = false;
        else if (byte === ESCAPE) escaped = true;
        else if (byte === QUOTE) inString = false;
      } else if (done) {
        if (!SPACES.has(byte)) throw damaged(path, "has more after the end of its list");
      } else if (byte === QUOTE) inString = true;
      else if (byte === OPEN || byte === OPEN_OBJECT) {
        if (depth++ === 0) from = at + 1;
      } else if (byte === CLOSE || byte === CLOSE_OBJECT) {
        if (--depth > 0) continue;
        take(at);
        done = true;
        const last = whole();
        // a list of nothing has no row; after a comma nothing is a fault
        if (rows > 0 || last.some((one) => !SPACES.has(one))) yield row(last, ++rows, before + at + 1);
      } else if (byte === COMMA && depth === 1) {
        take(at);
        yield row(whole(), ++rows, before + at + 1);
      }
    }
    if (!done && depth > 0) take(chunk.length);
    before += chunk.length;
  }
  if (!done) throw damaged(path, `ends within its list, after ${counted(rows, "row")}`);
}

const damaged = (path: string, why: string): RequestError =>
  new RequestError("data.file", `${path}: ${why}`, "a .json file is one list of objects, or one object a line; fetch it anew");
