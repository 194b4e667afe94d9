// The values of one column of a row group, a page at a time, so that memory holds a page of each column rather than a row
// group.
// hyparquet decodes; what it lets pass is checked here: page checksums and counts of values.

import type { DecodedArray, SchemaTree } from "hyparquet";
import { parquetHeader, readPage } from "hyparquet/src/column.js";
import { convert as converted } from "hyparquet/src/convert.js";
import { getMaxRepetitionLevel } from "hyparquet/src/schema.js";
import { count, counted } from "../base/units.ts";

export type Column = {
  /** Reads bytes of the file. */
  readonly read: (from: number, length: number) => Uint8Array<ArrayBuffer>;
  readonly from: number;
  readonly to: number;
  /** Values, those of lists one by one. */
  readonly values: number;
  readonly schemaPath: readonly SchemaTree[];
  /** What hyparquet calls a column decoder. */
  readonly decoder: object;
  readonly convert: (value: unknown) => unknown;
};

/** Bytes in which the header of a page is looked for first: with statistics of long texts it may have more. */
const HEADER = 1 << 12;
/** Bytes of a page at most; programs write a megabyte. */
const MOST_PAGE = 1 << 29;

type Header = ReturnType<typeof parquetHeader>;

/** The values of the column's rows, in the order of the rows, some rows at a time. Throws Errors that say what is wrong. */
export function* columnRows(column: Column): Generator<readonly unknown[]> {
  const { schemaPath, decoder, convert } = column;
  const isList = getMaxRepetitionLevel([...schemaPath]) > 0;
  let dictionary: DecodedArray | undefined;
  let last: unknown[] = []; // of lists, the last row of a page may continue on the next
  for (const { header, page } of pagesOf(column)) {
    const reader = { view: new DataView(page.buffer), offset: 0 };
    const { data } = readPage(reader, header, decoder as never, dictionary, isList ? last : undefined, 0);
    if (header.type === "DICTIONARY_PAGE") dictionary = data && converted(data, decoder as never);
    else if (data && isList) {
      last = data as unknown[];
      yield last.splice(0, last.length - 1).map(convert);
    } else if (data) yield Array.from(data as ArrayLike<unknown>, convert);
  }
  if (last.length > 0) yield last.map(convert);
}

/** Each page is there, has the bytes that its checksum says, and together they have all values: before any row is read. */
export function checkPages(column: Column): void {
  let found = 0;
  for (const { header } of pagesOf(column)) found += valuesOf(header);
  if (found !== column.values) throw new Error(`has ${counted(found, "value")}, expected ${count(column.values)}`);
}

const valuesOf = ({ data_page_header: one, data_page_header_v2: two }: Header): number =>
  one?.num_values ?? two?.num_values ?? 0;

function* pagesOf(column: Column): Generator<{ readonly header: Header; readonly page: Uint8Array<ArrayBuffer> }> {
  const { from, to, values } = column;
  for (let [at, found] = [from, 0]; at < to && found < values; ) {
    const { header, bytes } = headerAt(column, at);
    const page = pageOf(column, header, at + bytes);
    at += bytes + page.length;
    found += valuesOf(header);
    yield { header, page };
  }
}

function headerAt({ read, to }: Column, at: number): { readonly header: Header; readonly bytes: number } {
  for (let length = HEADER; ; length *= 8) {
    const reader = { view: new DataView(read(at, Math.min(length, to - at)).buffer), offset: 0 };
    try {
      const header = parquetHeader(reader);
      return { header, bytes: reader.offset };
    } catch (error) {
      if (length >= to - at) throw error;
    }
  }
}

function pageOf({ read, to }: Column, header: Header, at: number): Uint8Array<ArrayBuffer> {
  const { crc, compressed_page_size: size, uncompressed_page_size: unpacked } = header;
  if (!(size >= 0 && at + size <= to)) throw new Error("a page is cut off");
  if (!(unpacked <= MOST_PAGE))
    throw new Error(
      `has a page of ${counted(unpacked, "byte")}, ${count(MOST_PAGE)} at most are read: write it with smaller pages`,
    );
  const page = read(at, size);
  if (crc !== undefined && crc >>> 0 !== Bun.hash.crc32(page))
    throw new Error("a page has another checksum than it was written with");
  return page;
}
