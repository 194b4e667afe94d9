// Rows of Parquet files, a row group at a time. hyparquet decodes; what it lets pass is checked here: page checksums, counts of
// values, texts that are not UTF-8. Values have Python's meaning, as in json.ts.
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
import { parquetHeader, readColumn } from "hyparquet/src/column.js";
import { DEFAULT_PARSERS } from "hyparquet/src/convert.js";
import { getTreePath } from "hyparquet/src/schema.js";
import { RequestError, textOf } from "../base/errors.ts";
import { unreadable } from "./bytes.ts";
import { floatOf, objectOf, parseJson } from "./json.ts";
import type { ReadRow } from "./jsonl.ts";

const AGAIN = "write the file again, or fetch it anew";

export function* parquetRows(path: string): Generator<ReadRow> {
  const fd = openSync(path, "r");
  try {
    const metadata = readMetadata(path, fd);
    const tree = parquetSchema(metadata);
    let line = 0;
    for (const [group, { columns, num_rows }] of metadata.row_groups.entries()) {
      const rows = Number(num_rows);
      const ends = Math.max(...columns.map((chunk) => rangeOf(chunk).to));
      const table = readGroup({ path, fd, group, firstRow: line + 1 }, columns, rows, tree);
      for (let row = 0; row < rows; row++) {
        const entries = table.map(({ name, values }) => [name, values[row]] as const);
        yield { line: ++line, bytes: ends, read: () => ({ fields: objectOf(entries) }) };
      }
    }
  } finally {
    closeSync(fd);
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

type Place = { readonly path: string; readonly fd: number; readonly group: number; readonly firstRow: number };
type Column = { readonly name: string; readonly values: readonly unknown[] };
/** A column or a part of one, with its values by its path. */
type Values = Map<string, unknown[]>;

/** The columns of a row group, with a value for each row. */
function readGroup(place: Place, chunks: readonly ColumnChunk[], rows: number, tree: SchemaTree): Column[] {
  return tree.children.map((child) => {
    const { name } = child.element;
    try {
      const values: Values = new Map();
      for (const chunk of chunks) {
        const path = chunk.meta_data?.path_in_schema;
        if (path?.[0] === name) values.set(path.join("."), readLeaf(place, chunk, rows, tree));
      }
      assembleNested(values as never, child, DEFAULT_PARSERS);
      const whole = values.get(name);
      if (whole?.length !== rows) throw new Error(`has ${whole?.length ?? 0} values for ${rows} rows`);
      return { name, values: child.children.length === 0 ? whole : whole.map(withoutNulls) };
    } catch (error) {
      if (error instanceof RequestError) throw error;
      const last = place.firstRow + rows - 1;
      throw new RequestError(
        "data.row",
        `${place.path}: column '${name}', rows ${place.firstRow} to ${last}: ${faultOf(error)}`,
        AGAIN,
      );
    }
  });
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

function readLeaf({ path, fd }: Place, chunk: ColumnChunk, rows: number, tree: SchemaTree): unknown[] {
  const { meta_data, file_path } = chunk;
  if (!meta_data || file_path) throw new Error("lies in another file or is encrypted");
  const { from, to } = rangeOf(chunk);
  const bytes = readAt(path, fd, from, to - from);
  checkPages(bytes, Number(meta_data.num_values));
  const schemaPath = getTreePath(tree, meta_data.path_in_schema);
  const { element } = schemaPath.at(-1)!;
  const { element: plain, convert } = conversionOf(element);
  const { data } = readColumn(
    { view: new DataView(bytes.buffer), offset: 0 },
    { groupStart: 0, selectStart: 0, selectEnd: rows, groupRows: rows },
    {
      ...meta_data,
      pathInSchema: meta_data.path_in_schema,
      element: plain,
      schemaPath: [...schemaPath.slice(0, -1), { ...schemaPath.at(-1)!, element: plain }],
      parsers: PARSERS,
      compressors: COMPRESSORS,
      utf8: false,
    } as never,
  );
  return data.flatMap((part) => Array.from(part as ArrayLike<unknown>, convert));
}

/** Walks the pages of a column: each is there, has the bytes that its checksum says, and together they have all values. */
function checkPages(bytes: Uint8Array<ArrayBuffer>, values: number): void {
  const reader = { view: new DataView(bytes.buffer), offset: 0 };
  let found = 0;
  while (reader.offset < bytes.length && found < values) {
    const header = parquetHeader(reader);
    const { crc, compressed_page_size: size } = header;
    if (!(size >= 0 && reader.offset + size <= bytes.length)) throw new Error("a page is cut off");
    const page = bytes.subarray(reader.offset, reader.offset + size);
    if (crc !== undefined && crc >>> 0 !== Bun.hash.crc32(page))
      throw new Error("a page has another checksum than it was written with");
    found += header.data_page_header?.num_values ?? header.data_page_header_v2?.num_values ?? 0;
    reader.offset += size;
  }
  if (found !== values) throw new Error(`has ${found} values, expected ${values}`);
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
function textFrom(bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new Error("has a text that is not UTF-8");
  }
}

/** As Python's str() prints a datetime. */
function timeText(seconds: bigint, fraction: bigint, digits: number): string {
  const whole = seconds - (fraction < 0n ? 1n : 0n);
  const part = fraction < 0n ? fraction + 10n ** BigInt(digits) : fraction;
  const text = new Date(Number(whole) * 1000).toISOString().slice(0, 19).replace("T", " ");
  const written =
    part === 0n
      ? ""
      : `.${`${part}`
          .padStart(digits, "0")
          .padEnd(6, "0")
          .replace(/(?<=\.?\d{6})0+$/, "")}`;
  return text + written;
}
const timeBy = (digits: number) => (value: bigint | number) => {
  const unit = 10n ** BigInt(digits);
  return timeText(BigInt(value) / unit, BigInt(value) % unit, digits) as never;
};

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

/** Of a value, or of each in lists of them. */
const each = (convert: (value: unknown) => unknown) =>
  function all(value: unknown): unknown {
    if (Array.isArray(value)) return value.map(all);
    return convert(value);
  };

const safe = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

/** As Python's str() prints a Decimal of this scale. */
function decimalText(value: unknown, scale: number): unknown {
  if (value == null) return null;
  const whole = value instanceof Uint8Array ? signed(value) : BigInt(value as number | bigint);
  const digits = `${whole < 0n ? -whole : whole}`.padStart(scale + 1, "0");
  const at = digits.length - scale;
  return `${whole < 0n ? "-" : ""}${digits.slice(0, at)}${scale > 0 ? `.${digits.slice(at)}` : ""}`;
}

function signed(bytes: Uint8Array): bigint {
  const value = bytes.reduce((all, byte) => (all << 8n) | BigInt(byte), 0n);
  return BigInt.asIntN(8 * Math.max(1, bytes.length), value);
}
