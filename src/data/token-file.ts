// The rows of one file as they were tokenised, in a file of the cache: written as they come, so that memory holds a piece of
// them at a time, and mapped into memory to be read, so that it holds none.
//
//   pieces (ids, then mask), index, lines, labels, each from a multiple of 8 bytes on; a footer in JSON with the place and the
//   hash of each; the footer's length and hash, a 64-bit number each.

import { closeSync, fstatSync, fsyncSync, openSync, readSync, renameSync, writeSync } from "node:fs";
import * as v from "valibot";
import { removeQuietly } from "../base/atomic.ts";
import { writeError } from "../base/faults.ts";
import { randomText } from "../base/secret.ts";
import type { Packed, PackedFile, Sequence } from "./rows.ts";

const ALIGN = 8;
const END = 2 * ALIGN;
const MOST_FOOTER = 1 << 30;

const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const section = v.object({ at: count, bytes: count, hash: v.string() });
const footer = v.object({
  /** What the file is of: its key. */
  key: v.string(),
  file: v.string(),
  paired: v.boolean(),
  pieces: v.array(v.object({ ids: section, mask: section })),
  index: section,
  lines: section,
  labels: section,
  /** What else is known of the rows. */
  more: v.unknown(),
});
type Section = v.InferOutput<typeof section>;
type Footer = v.InferOutput<typeof footer>;

const hashOf = (bytes: Uint8Array): string => Bun.hash.xxHash3(bytes).toString(16);
const bytesOf = (of: Int32Array | Uint8Array): Uint8Array => new Uint8Array(of.buffer, of.byteOffset, of.byteLength);

/** Writes a file that takes its name when it is whole. Throws RunErrors. */
export class TokenFileWriter implements Disposable {
  readonly #temporary: string;
  readonly #fd: number;
  readonly #pieces: Footer["pieces"] = [];
  #at = 0;
  #isDone = false;

  constructor(private readonly path: string) {
    this.#temporary = `${path}.${process.pid}-${randomText(6)}.tmp`;
    this.#fd = this.#attempt(() => openSync(this.#temporary, "wx", 0o600));
  }

  readonly piece = ({ ids, mask }: Sequence): void => {
    this.#pieces.push({ ids: this.#write(bytesOf(ids)), mask: this.#write(bytesOf(mask)) });
  };

  finish(key: string, { file, paired, index, lines, labels }: Packed, more: unknown): void {
    const [one, two, three] = [index, lines, labels].map((part) => this.#write(bytesOf(part)));
    const whole: Footer = { key, file, paired, pieces: this.#pieces, index: one!, lines: two!, labels: three!, more };
    const text = new TextEncoder().encode(JSON.stringify(whole));
    this.#write(text);
    const end = new BigUint64Array([BigInt(text.length), Bun.hash.xxHash3(text)]);
    this.#write(new Uint8Array(end.buffer));
    this.#attempt(() => {
      fsyncSync(this.#fd);
      renameSync(this.#temporary, this.path);
    });
    this.#isDone = true;
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
    if (!this.#isDone) removeQuietly(this.#temporary);
  }

  #write(bytes: Uint8Array): Section {
    const at = this.#at;
    const padded = Math.ceil(bytes.length / ALIGN) * ALIGN;
    this.#attempt(() => {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done, bytes.length - done);
      if (padded > bytes.length) writeSync(this.#fd, new Uint8Array(padded - bytes.length));
    });
    this.#at += padded;
    return { at, bytes: bytes.length, hash: hashOf(bytes) };
  }

  #attempt<T>(write: () => T): T {
    try {
      return write();
    } catch (error) {
      throw writeError(this.path, error);
    }
  }
}

/** What a whole file of this key says of its rows besides them; null where there is none, or it is damaged. */
export function checkTokenFile(path: string, key: string): { readonly file: string; readonly more: unknown } | null {
  try {
    const read = readFooter(path);
    const fd = openSync(path, "r");
    try {
      const isSame = ({ at, bytes, hash }: Section) => hashOf(readAt(fd, at, bytes)) === hash;
      const sections = [...read.pieces.flatMap(({ ids, mask }) => [ids, mask]), read.index, read.lines, read.labels];
      return read.key === key && sections.every(isSame) ? read : null;
    } finally {
      closeSync(fd);
    }
  } catch {
    return null; // it is made again
  }
}

/** The rows of a whole file, mapped; `file` is what it is called now. */
export function mapTokens(path: string, file: string): PackedFile {
  const { paired, pieces, index, lines, labels } = readFooter(path);
  const all = Bun.mmap(path, { shared: true });
  const bytes = ({ at, bytes: length }: Section) => all.subarray(at, at + length);
  const numbers = ({ at, bytes: length }: Section) =>
    new Int32Array(all.buffer as ArrayBuffer, all.byteOffset + at, length / 4);
  return {
    ...{ file, paired, mapped: path },
    pieces: pieces.map(({ ids, mask }) => ({ ids: numbers(ids), mask: bytes(mask) })),
    index: numbers(index),
    lines: numbers(lines),
    labels: bytes(labels),
  };
}

function readFooter(path: string): Footer {
  const fd = openSync(path, "r");
  try {
    const { size } = fstatSync(fd);
    const end = new DataView(readAt(fd, size - END, END).buffer);
    const length = Number(end.getBigUint64(0, true));
    const padded = Math.ceil(length / ALIGN) * ALIGN;
    if (length > Math.min(MOST_FOOTER, size)) throw new Error("the footer is longer than the file");
    const text = readAt(fd, size - END - padded, length);
    if (Bun.hash.xxHash3(text) !== end.getBigUint64(ALIGN, true)) throw new Error("the footer is damaged");
    return v.parse(footer, JSON.parse(new TextDecoder().decode(text)));
  } finally {
    closeSync(fd);
  }
}

function readAt(fd: number, at: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const got = readSync(fd, bytes, done, length - done, at + done);
    if (got === 0) throw new Error("the file is cut off");
    done += got;
  }
  return bytes;
}
