// Rows of Parquet files, a page of each column at a time (parquet-pages.ts). hyparquet decodes; what it lets pass is checked:
// texts that are not UTF-8 here. Values have Python's meaning, as in json.ts.
//
// The package's own entry is asynchronous. Its parts are not, and rows are read without waiting.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { brotliDecompressSync } from "node:zlib";
import {
  type ColumnChunk,
  type FileMetaData,
  parquetMetadata,
  parquetSchema,
  type SchemaElement,
  type SchemaTree,
} from "hyparquet";
import { assembleNested } from "hyparquet/src/assemble.js";
import { DEFAULT_PARSERS } from "hyparquet/src/convert.js";
import { getTreePath } from "hyparquet/src/schema.js";
import { RequestError, textOf } from "../base/errors.ts";
import { rangeOfRows, sum } from "../base/shape.ts";
import { unreadable } from "./bytes.ts";
import { floatOf, objectOf, parseJson } from "./json.ts";
import type { Parsed, ReadRow } from "./jsonl.ts";
import { checkPages, columnRows } from "./parquet-pages.ts";
import type { RowPlaces } from "./row-places.ts";

const AGAIN = "write the file again, or fetch it anew";

export function* parquetRows(path: string): Generator<ReadRow> {
  const fd = openSync(path, "r");
  try {
    const metadata = readMetadata(path, fd);
    const tree = parquetSchema(metadata);
    let line = 0;
    for (const { columns, num_rows } of metadata.row_groups) {
      const rows = Number(num_rows);
      const ends = Math.max(...columns.map((chunk) => rangeOf(chunk).to));
      for (const read of rowsIn({ path, fd, firstRow: line + 1, rows }, columns, tree))
        yield { line: ++line, bytes: ends, read };
    }
  } finally {
    closeSync(fd);
  }
}

function* rowsIn(group: Group, columns: readonly ColumnChunk[], tree: SchemaTree): Generator<() => Parsed> {
  for (const table of tablesOf(group, columns, tree))
    for (let row = 0; row < table.rows; row++) {
      const entries = table.columns.map(({ name, values }) => [name, values[row]] as const);
      yield () => ({ fields: objectOf(entries) });
    }
}

/** Bytes of a row group, at most, of which a single row is read: it is decoded up to the row. */
const MOST_GROUP = 8 << 20;

/** The rows by their number; null where row groups are too large to be decoded for each row. */
export function parquetPlaces(path: string): RowPlaces | null {
  using opened = new DisposableStack();
  const fd = opened.adopt(openSync(path, "r"), closeSync);
  const metadata = readMetadata(path, fd);
  if (metadata.row_groups.some(({ total_byte_size }) => Number(total_byte_size) > MOST_GROUP)) return null;
  const places = new GroupPlaces(path, fd, metadata);
  opened.move();
  return places;
}

class GroupPlaces implements RowPlaces {
  readonly lines: Int32Array;
  /** The number of each group's first row. */
  readonly #firsts: readonly number[];
  readonly #tree: SchemaTree;
  /** The group that was read from last, and its rows from `row` on. */
  #open: { readonly group: number; readonly rows: Iterator<() => Parsed>; row: number } | null = null;

  constructor(
    private readonly path: string,
    private readonly fd: number,
    private readonly metadata: FileMetaData,
  ) {
    const counts = metadata.row_groups.map(({ num_rows }) => Number(num_rows));
    this.#firsts = counts.map((_, group) => sum(counts.slice(0, group)));
    this.lines = rangeOfRows(sum(counts)).map((row) => row + 1);
    this.#tree = parquetSchema(metadata);
  }

  bytes(row: number): number {
    const { total_byte_size, num_rows } = this.metadata.row_groups[this.#groupOf(row)]!;
    return Number(total_byte_size) / Number(num_rows);
  }

  /** Continues after the last row, if this one comes later in the same group: rows that are asked for in order are quick. */
  read(row: number): Parsed | null {
    const group = this.#groupOf(row);
    if (this.#open?.group !== group || this.#open.row > row) this.#open = this.#begin(group);
    const { rows } = this.#open;
    for (;;) {
      const { done, value } = rows.next();
      if (done) return null;
      if (this.#open.row++ === row) return value();
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }

  #groupOf(row: number): number {
    return this.#firsts.findLastIndex((first) => first <= row);
  }

  #begin(group: number) {
    const { path, fd } = this;
    const { columns, num_rows } = this.metadata.row_groups[group]!;
    const first = this.#firsts[group]!;
    return { group, row: first, rows: rowsIn({ path, fd, firstRow: first + 1, rows: Number(num_rows) }, columns, this.#tree) };
  }
}

function readAt(path: string, fd: number, from: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  if (length < 0 || readSync(fd, bytes, 0, length, from) !== length)
    throw unreadable(path, `ends before byte ${from + length}`, AGAIN);
  return bytes;
}

const MAGIC = "PAR1";
const FOOT = 8;
const MOST_METADATA = 1 << 30;

function readMetadata(path: string, fd: number): FileMetaData {
  const { size } = fstatSync(fd);
  const text = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1");
  if (size < FOOT + MAGIC.length || text(readAt(path, fd, 0, MAGIC.length)) !== MAGIC)
    throw unreadable(path, "is no Parquet file", "give it the ending of what it is: .jsonl, .json, .csv, .tsv or .parquet");
  const foot = readAt(path, fd, size - FOOT, FOOT);
  if (text(foot.subarray(4)) !== MAGIC) throw unreadable(path, "is cut off: a Parquet file ends with PAR1", AGAIN);
  const length = new DataView(foot.buffer).getUint32(0, true);
  if (length > Math.min(size - FOOT - MAGIC.length, MOST_METADATA)) throw unreadable(path, "has no readable footer", AGAIN);
  try {
    return parquetMetadata(readAt(path, fd, size - FOOT - length, length + FOOT), { geoparquet: false });
  } catch {
    throw unreadable(path, "has no readable footer", AGAIN); // the decoder's errors are of its own code
  }
}

type Group = { readonly path: string; readonly fd: number; readonly firstRow: number; readonly rows: number };
type Column = { readonly name: string; readonly values: readonly unknown[] };
/** A column or a part of one, with values by its path. */
type Values = Map<string, unknown[]>;

/** The columns of a row group, some rows at a time. */
function* tablesOf(
  group: Group,
  chunks: readonly ColumnChunk[],
  tree: SchemaTree,
): Generator<{ readonly rows: number; readonly columns: readonly Column[] }> {
  const columns = tree.children.map((child) => new GroupColumn(group, child, chunks, tree));
  for (let left = group.rows; left > 0; ) {
    const rows = Math.min(left, ...columns.map((column) => column.ready()));
    yield { rows, columns: columns.map((column) => column.take(rows)) };
    left -= rows;
  }
  for (const column of columns) column.end();
}

/** A column, with the leaves that it is put together of. */
class GroupColumn {
  readonly #leaves: { readonly path: string; readonly pages: Iterator<readonly unknown[]>; waiting: unknown[] }[];
  #taken = 0;

  constructor(
    private readonly group: Group,
    private readonly of: SchemaTree,
    chunks: readonly ColumnChunk[],
    tree: SchemaTree,
  ) {
    const own = chunks.filter(({ meta_data }) => meta_data?.path_in_schema[0] === of.element.name);
    this.#leaves = this.#attempt(() =>
      own.map((chunk) => {
        const leaf = leafOf(group, chunk, tree);
        checkPages(leaf);
        return { path: chunk.meta_data!.path_in_schema.join("."), pages: columnRows(leaf), waiting: [] };
      }),
    );
  }

  /** Rows that are there: one at least. */
  ready(): number {
    return this.#attempt(() => {
      for (const leaf of this.#leaves)
        while (leaf.waiting.length === 0) {
          const { done, value } = leaf.pages.next();
          if (done) throw this.#short(this.#taken);
          leaf.waiting = [...value];
        }
      if (this.#leaves.length === 0) throw this.#short(0);
      return Math.min(...this.#leaves.map(({ waiting }) => waiting.length));
    });
  }

  take(rows: number): Column {
    const { name } = this.of.element;
    return this.#attempt(() => {
      const values: Values = new Map(this.#leaves.map(({ path, waiting }) => [path, waiting.splice(0, rows)]));
      assembleNested(values as never, this.of, DEFAULT_PARSERS);
      const whole = values.get(name);
      if (whole?.length !== rows) throw this.#short(this.#taken + (whole?.length ?? 0));
      this.#taken += rows;
      return { name, values: this.of.children.length === 0 ? whole : whole.map(withoutNulls) };
    });
  }

  /** The last pages are checked, too, and hold no row more. */
  end(): void {
    this.#attempt(() => {
      for (const { pages, waiting } of this.#leaves) {
        let more = waiting.length;
        for (let next = pages.next(); !next.done; next = pages.next()) more += next.value.length;
        if (more > 0) throw this.#short(this.#taken + more);
      }
    });
  }

  readonly #short = (found: number) => new Error(`has ${found} values for ${this.group.rows} rows`);

  #attempt<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      if (error instanceof RequestError) throw error;
      const { path, firstRow, rows } = this.group;
      const place = `${path}: column '${this.of.element.name}', rows ${firstRow} to ${firstRow + rows - 1}`;
      throw new RequestError("data.row", `${place}: ${faultOf(error)}`, AGAIN);
    }
  }
}

/** A decoder that meets what it does not expect fails somewhere in its own code. */
const faultOf = (error: unknown): string =>
  error instanceof TypeError || error instanceof RangeError ? "is damaged" : textOf(error);

/** What is null within a value says nothing: Arrow writes each key of one object into all objects. */
function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== "object" || value === null || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return objectOf(Object.entries(value).flatMap(([key, own]) => (own == null ? [] : [[key, withoutNulls(own)] as const])));
}

function rangeOf({ meta_data }: ColumnChunk): { readonly from: number; readonly to: number } {
  const { dictionary_page_offset, data_page_offset, total_compressed_size } = meta_data!;
  const from = Number(dictionary_page_offset || data_page_offset);
  return { from, to: from + Number(total_compressed_size) };
}

function leafOf({ path, fd }: Group, chunk: ColumnChunk, tree: SchemaTree) {
  const { meta_data, file_path } = chunk;
  if (!meta_data || file_path) throw new Error("lies in another file or is encrypted");
  const whole = getTreePath(tree, meta_data.path_in_schema);
  const { element: plain, convert } = conversionOf(whole.at(-1)!.element);
  const schemaPath = [...whole.slice(0, -1), { ...whole.at(-1)!, element: plain }];
  const decoder = {
    ...{ ...meta_data, pathInSchema: meta_data.path_in_schema, element: plain, schemaPath },
    ...{ parsers: PARSERS, compressors: COMPRESSORS, utf8: false },
  };
  const read = (from: number, length: number) => readAt(path, fd, from, length);
  return { read, ...rangeOf(chunk), values: Number(meta_data.num_values), schemaPath, decoder, convert };
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
function textFrom(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new Error("has a text that is not UTF-8");
  }
}

/** As Python's str() prints a datetime: `value` counts units, of which a second has 10 to the power of `digits`. */
function timeText(value: bigint, digits: number): string {
  const unit = 10n ** BigInt(digits);
  const part = ((value % unit) + unit) % unit;
  const text = new Date(Number((value - part) / unit) * 1000).toISOString().slice(0, 19).replace("T", " ");
  const fraction = `${part}`.padStart(digits, "0").padEnd(6, "0");
  return part === 0n ? text : `${text}.${fraction.replace(/(?<=\d{6})0+$/, "")}`;
}
const timeBy = (digits: number) => (value: bigint | number) => timeText(BigInt(value), digits) as never;

const PARSERS = {
  ...DEFAULT_PARSERS,
  timestampFromMilliseconds: timeBy(3),
  timestampFromMicroseconds: timeBy(6),
  timestampFromNanoseconds: timeBy(9),
  dateFromDays: (days: number) => new Date(days * 86_400_000).toISOString().slice(0, 10) as never,
  stringFromBytes: (bytes: Uint8Array | undefined) => bytes && textFrom(bytes),
  jsonFromBytes: (bytes: Uint8Array | undefined) => bytes && parseJson(textFrom(bytes)),
};

const LZ4 = () => {
  throw new Error("is compressed with LZ4, which is not read: write it with snappy, zstd or gzip");
};
const COMPRESSORS = {
  GZIP: (bytes: Uint8Array) => Bun.gunzipSync(Uint8Array.from(bytes)),
  ZSTD: (bytes: Uint8Array) => Bun.zstdDecompressSync(Uint8Array.from(bytes)),
  BROTLI: (bytes: Uint8Array) => brotliDecompressSync(bytes),
  LZ4,
  LZ4_RAW: LZ4,
};

/** How the values of a column become those of json.ts, and the element that has hyparquet leave them to that. */
function conversionOf(element: SchemaElement): {
  readonly element: SchemaElement;
  readonly convert: (value: unknown) => unknown;
} {
  const { converted_type, logical_type, type, scale = 0 } = element;
  if (converted_type === "DECIMAL" || logical_type?.type === "DECIMAL") {
    const { converted_type: _, logical_type: __, ...plain } = element;
    return { element: plain, convert: each((value) => decimalText(value, scale)) };
  }
  const digits = digitsOfDay(element);
  if (digits !== null) {
    const { converted_type: _, logical_type: __, ...plain } = element;
    const dayTime = (value: unknown) => (value == null ? null : timeText(BigInt(value as number | bigint), digits).slice(11));
    return { element: plain, convert: each(dayTime) };
  }
  // Python's datetime has a zone there: that of Parquet's moments is UTC.
  if (logical_type?.type === "TIMESTAMP" && logical_type.isAdjustedToUTC)
    return { element, convert: each((value) => (value == null ? null : `${value}+00:00`)) };
  const isFloat = type === "FLOAT" || type === "DOUBLE" || logical_type?.type === "FLOAT16";
  return {
    element,
    convert: each((value) => {
      if (typeof value === "bigint") return safe(value);
      if (typeof value === "number" && isFloat) return floatOf(value);
      if (value instanceof Uint8Array) return { bytes: value.length };
      return value ?? null;
    }),
  };
}

const DIGITS = { MILLIS: 3, MICROS: 6, NANOS: 9 } as const;

/** Of a column of times of a day, the digits of a second's fraction; null of any other. */
function digitsOfDay({ converted_type, logical_type }: SchemaElement): number | null {
  if (logical_type?.type === "TIME") return DIGITS[logical_type.unit];
  return converted_type === "TIME_MILLIS" ? DIGITS.MILLIS : converted_type === "TIME_MICROS" ? DIGITS.MICROS : null;
}

/** Of a value, or of each in lists of them. */
const each = (convert: (value: unknown) => unknown) =>
  function all(value: unknown): unknown {
    if (Array.isArray(value)) return value.map(all);
    return convert(value);
  };

const safe = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

/** As Python's str() prints a Decimal of this scale: with an exponent where more than five zeros would follow the point. */
function decimalText(value: unknown, scale: number): unknown {
  if (value == null) return null;
  const whole = value instanceof Uint8Array ? signed(value) : BigInt(value as number | bigint);
  const [sign, own] = whole < 0n ? ["-", `${-whole}`] : ["", `${whole}`];
  const exponent = own.length - 1 - scale;
  if (exponent < -6) return `${sign}${own[0]}${own.length > 1 ? `.${own.slice(1)}` : ""}E${exponent}`;
  const digits = own.padStart(scale + 1, "0");
  const at = digits.length - scale;
  return `${sign}${digits.slice(0, at)}${scale > 0 ? `.${digits.slice(at)}` : ""}`;
}

function signed(bytes: Uint8Array): bigint {
  const value = bytes.reduce((all, byte) => (all << 8n) | BigInt(byte), 0n);
  return BigInt.asIntN(8 * Math.max(1, bytes.length), value);
}
