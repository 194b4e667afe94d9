// Compressed files, known by their first bytes: expanded once into the cache, in pieces, and only if they are whole.

import { closeSync, createReadStream, createWriteStream, existsSync, openSync, readSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { removeQuietly } from "../base/atomic.ts";
import { MloraError, RequestError, textOf } from "../base/errors.ts";
import { systemError, writeError } from "../base/faults.ts";
import { randomText } from "../base/secret.ts";
import type { DataFile } from "../data/data-file.ts";
import { fileFingerprint } from "../files/fingerprint.ts";
import { shelf, touch, trim } from "./cache.ts";
import { settle } from "./partial.ts";

type Compression = {
  readonly title: string;
  readonly magic: readonly number[];
  readonly open: () => Transform;
  /** Throws where a file is not whole and its decoder would not say so. */
  readonly check?: (path: string) => void;
};

const COMPRESSIONS: readonly Compression[] = [
  { title: "gzip", magic: [0x1f, 0x8b], open: createGunzip },
  { title: "zstd", magic: [0x28, 0xb5, 0x2f, 0xfd], open: createZstdDecompress, check: checkZstd },
];

/**
 * The file, or where it is compressed what is in it. Throws a RequestError, `data.file`, where that is damaged or cut off, and
 * a RunError, `files.write`, where the cache cannot be written.
 */
export async function expanded(file: DataFile, signal?: AbortSignal): Promise<DataFile> {
  const compression = compressionOf(file.path);
  if (compression === undefined) return file;
  const folder = shelf("expanded");
  const path = join(folder, fileFingerprint(file.path));
  if (!existsSync(path)) {
    const made = `${path}.${process.pid}-${randomText(6)}.tmp`;
    try {
      compression.check?.(file.path);
      await pipeline(
        createReadStream(file.path),
        compression.open(),
        createWriteStream(made, { mode: 0o600 }),
        signal ? { signal } : {},
      );
      settle(made, path);
    } catch (error) {
      removeQuietly(made);
      signal?.throwIfAborted();
      if (error instanceof MloraError) throw error;
      throw systemError(error) ? writeError(path, error) : damaged(file, compression, textOf(error));
    }
    trim(folder);
  }
  touch(path);
  return { name: file.name, path };
}

const damaged = ({ name }: DataFile, { title }: Compression, why: string): RequestError =>
  new RequestError("data.file", `${name}: is damaged or cut off ${title}: ${why}`, "compress it again, or fetch it anew");

function compressionOf(path: string): Compression | undefined {
  const head = new Uint8Array(4);
  const fd = openSync(path, "r");
  try {
    readSync(fd, head);
  } finally {
    closeSync(fd);
  }
  return COMPRESSIONS.find(({ magic }) => magic.every((byte, i) => head[i] === byte));
}

const [FRAME, SKIPPABLE] = [0xfd2fb528, 0x184d2a50];
const [RLE, RESERVED] = [1, 3];

/** Walks the frames and blocks of a file (RFC 8878): Bun's decoder takes the end of the input for the end of a frame. */
function checkZstd(path: string): void {
  const { size } = statSync(path);
  const fd = openSync(path, "r");
  let at = 0;
  const take = (bytes: number): number => {
    const read = Buffer.alloc(bytes);
    if (readSync(fd, read, 0, bytes, at) !== bytes) throw new Error("it ends within a frame");
    at += bytes;
    return bytes === 0 ? 0 : read.readUIntLE(0, bytes);
  };
  try {
    while (at < size) {
      const magic = take(4);
      if ((magic & ~0xf) >>> 0 === SKIPPABLE) at += take(4);
      else if (magic !== FRAME) throw new Error(`byte ${at - 4} begins no frame`);
      else checkFrame(take, (bytes) => (at += bytes));
      if (at > size) throw new Error("it ends within a frame");
    }
  } finally {
    closeSync(fd);
  }
}

function checkFrame(take: (bytes: number) => number, skip: (bytes: number) => void): void {
  const descriptor = take(1);
  const isSingle = (descriptor & 0x20) !== 0;
  const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  skip((isSingle ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]! + sizeBytes);
  for (let last = false; !last; ) {
    const header = take(3);
    const type = (header >> 1) & 3;
    if (type === RESERVED) throw new Error("it has a block of no known kind");
    last = (header & 1) === 1;
    skip(type === RLE ? 1 : header >> 3);
  }
  if ((descriptor & 4) !== 0) take(4);
}
