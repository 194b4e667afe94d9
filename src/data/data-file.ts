// A file of rows and its form. Rows of all forms are the same to those who read them.

import { RequestError } from "../base/errors.ts";
import { checkFile } from "./bytes.ts";
import { csvRows } from "./csv.ts";
import { jsonRows } from "./json-list.ts";
import { jsonlRows, type ReadRow, type Row, RowFault, type Source } from "./jsonl.ts";
import { parquetRows } from "./parquet.ts";

/** A file of rows on this machine: where its bytes lie, what messages call it, and where it is known the hash of its bytes. */
export type DataFile = { readonly name: string; readonly path: string; readonly hash?: string };

/** Files by the names that a recipe has for them: a path is itself, others are what they stand for, in order. */
export type FilesOf = ReadonlyMap<string, readonly DataFile[]>;

/** The files that a recipe's names stand for. A name that is not known is a path. */
export const filesNamed = (names: readonly string[], files: FilesOf): readonly DataFile[] =>
  names.flatMap((name) => files.get(name) ?? [{ name, path: name }]);

/** How the bytes of each form are read, by the last part of a file's name. */
const READERS: Readonly<Record<string, (path: string) => Generator<ReadRow>>> = {
  json: jsonRows,
  csv: (path) => csvRows(path, ","),
  tsv: (path) => csvRows(path, "\t"),
  parquet: parquetRows,
};

/** Endings of names of data files: of a form, and of compressed ones. */
export const FORMS = ["jsonl", "ndjson", ...Object.keys(READERS)];
const COMPRESSED = /\.(gz|zst)$/i;
/** "csv" of "rows.csv.gz". */
export const formOf = (name: string): string => /\.([a-z]+)$/i.exec(name.replace(COMPRESSED, ""))?.[1]?.toLowerCase() ?? "";

/** Checks that a data file can be read at all. Throws a RequestError, `data.file`. */
export const checkDataFile = ({ name, path }: DataFile): void => void checkFile(path, name);

/** The rows of a file, which are yet to be parsed, by the form that its name says; JSONL where it says none. */
export function* unreadRowsOf({ name, path }: DataFile): Generator<ReadRow> {
  try {
    yield* (READERS[formOf(name)] ?? jsonlRows)(path);
  } catch (error) {
    throw underName(error, path, name);
  }
}

/** The rows of a file. What cannot be parsed is yielded as a fault, so that others may follow. */
export function* rowsOf(file: DataFile): Generator<Row | { readonly source: Source; readonly fault: string }> {
  for (const { line, read } of unreadRowsOf(file)) {
    const row = read();
    if (row) yield { source: { file: file.name, line }, ...row };
  }
}

/** Readers know the path: people know the name. */
function underName(error: unknown, path: string, name: string): unknown {
  if (path === name || error instanceof RowFault || !(error instanceof RequestError)) return error;
  if (!error.message.startsWith(path)) return error;
  return new RequestError(error.code, `${name}${error.message.slice(path.length)}`, error.hint);
}
