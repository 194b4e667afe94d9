// Rows of CSV and TSV: the first record names the columns, all values are texts. RFC 4180, as Python's csv module reads it, but
// for what that lets pass: a record with more or fewer fields, text after a closing quote, and a quote that never closes.

import { RequestError } from "../base/errors.ts";
import { chunksOf, unreadable } from "./bytes.ts";
import { objectOf } from "./json.ts";
import { LONGEST_ROW, type Parsed, type ReadRow, tooLong } from "./jsonl.ts";

type CsvRecord = { readonly line: number; readonly bytes: number; readonly fields: readonly string[]; readonly fault: string };

export function* csvRows(path: string, delimiter: string): Generator<ReadRow> {
  let header: readonly string[] | null = null;
  for (const { line, bytes, fields, fault } of recordsOf(path, delimiter)) {
    if (header === null) {
      header = checkHeader(path, fields, fault, delimiter);
      continue;
    }
    const names = header;
    yield { line, bytes, read: () => rowOf(names, fields, fault) };
  }
}

function rowOf(names: readonly string[], fields: readonly string[], fault: string): Parsed {
  if (fault !== "") return { fault };
  if (fields.length !== names.length)
    return { fault: `has ${fields.length} fields, expected ${names.length} as in the first line` };
  return { fields: objectOf(names.map((name, i) => [name, fields[i]!] as const)) };
}

function checkHeader(path: string, names: readonly string[], fault: string, delimiter: string): readonly string[] {
  const hint = "the first line names the columns, each once";
  if (fault !== "") throw unreadable(`${path}:1`, fault, hint);
  const unnamed = names.indexOf("");
  if (unnamed >= 0) throw unreadable(`${path}:1`, `column ${unnamed + 1} has no name`, hint);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw unreadable(`${path}:1`, `two columns are called '${twice}'`, hint);
  const other =
    names.length === 1 ? [";", "\t", ","].find((mark) => mark !== delimiter && names[0]!.includes(mark)) : undefined;
  if (other === undefined) return names;
  const shown = (mark: string) => (mark === "\t" ? "tabs" : `'${mark}'`);
  const way = "give a file with commas the ending .csv and one with tabs .tsv; write others anew";
  throw unreadable(`${path}:1`, `the columns are separated by ${shown(other)}, expected ${shown(delimiter)}`, way);
}

const [QUOTE, LF, CR] = ['"', "\n", "\r"];
const WITHIN_QUOTES = /[^"\r\n]+/y;
/** Where the reading is: before a field, in one, in a quoted one, or after a quote in that. */
type State = "begin" | "plain" | "quoted" | "closed";

/** Records of a file with the line that each begins on; blank lines are left out. Throws a RequestError. */
function* recordsOf(path: string, delimiter: string): Generator<CsvRecord> {
  const plain = new RegExp(`[^${delimiter}"\\r\\n]+`, "y");
  let [line, begun, length, afterCr] = [1, 1, 0, false];
  let [state, field, fields, fault]: [State, string, string[], string] = ["begin", "", [], ""];
  const end = (bytes: number): CsvRecord[] => {
    const isBlank = fields.length === 0 && state === "begin";
    const record = { line: begun, bytes, fields: [...fields, field], fault };
    [state, field, fields, fault] = ["begin", "", [], ""];
    [begun, length] = [line, 0];
    return isBlank ? [] : [record];
  };
  const add = (text: string): void => {
    field += text;
    length += text.length;
    if (length > LONGEST_ROW) throw tooLong({ file: path, line: begun });
  };
  for (const { text, bytes } of textsOf(path)) {
    for (let at = 0; at < text.length; ) {
      const part = runAt(text, at, state === "quoted" ? WITHIN_QUOTES : plain);
      if (part !== "") {
        if (state === "closed") fault ||= `has text after the closing quote of field ${fields.length + 1}`;
        if (state !== "quoted") state = "plain";
        add(part);
        at += part.length;
        afterCr = false;
        continue;
      }
      const c = text[at++]!;
      const isSecond = afterCr && c === LF; // of \r\n
      afterCr = c === CR;
      const isLineEnd = (afterCr || c === LF) && !isSecond;
      if (isLineEnd) line++;
      if (state === "quoted" && c === QUOTE) state = "closed";
      else if (state === "quoted") add(c);
      else if (isLineEnd) yield* end(bytes);
      else if (c === delimiter) {
        fields.push(field);
        [field, state] = ["", "begin"];
        length++;
      } else if (c === QUOTE) {
        if (state !== "begin") add(c);
        if (state !== "plain") state = "quoted";
      }
    }
  }
  if (state === "quoted")
    throw new RequestError(
      "data.row",
      `${path}:${begun}: field ${fields.length + 1} of the record that begins here has a quote that never closes`,
      'close the quote; a quote within a quoted field is written twice: ""',
    );
  yield* end(0);
}

function runAt(text: string, at: number, run: RegExp): string {
  run.lastIndex = at;
  return run.exec(text)?.[0] ?? "";
}

/** The text of a file in pieces, with the file's bytes up to the end of each. A byte order mark is taken away. */
function* textsOf(path: string): Generator<{ readonly text: string; readonly bytes: number }> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let bytes = 0;
  const decode = (chunk?: Uint8Array): string => {
    try {
      return chunk ? decoder.decode(chunk, { stream: true }) : decoder.decode();
    } catch {
      throw unreadable(path, `is not UTF-8 text (within the ${chunk?.length ?? 0} bytes from ${bytes})`, "write it as UTF-8");
    }
  };
  for (const chunk of chunksOf(path)) {
    const text = decode(chunk);
    bytes += chunk.length;
    yield { text, bytes };
  }
  yield { text: decode(), bytes };
}
