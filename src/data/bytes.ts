// The bytes of data files, read in pieces. Errors name the file and the way out.

import { closeSync, openSync, readSync, statSync } from "node:fs";
import { RequestError, textOf } from "../base/errors.ts";

const CHUNK = 1 << 20;

/** The bytes of a file, in order. A piece is overwritten when the next one is asked for. */
export function* chunksOf(path: string): Generator<Uint8Array> {
  const fd = attempt(path, () => openSync(path, "r"));
  try {
    const chunk = new Uint8Array(CHUNK);
    for (;;) {
      const got = attempt(path, () => readSync(fd, chunk, 0, CHUNK, null));
      if (got === 0) return;
      yield chunk.subarray(0, got);
    }
  } finally {
    closeSync(fd);
  }
}

/** Size of a file that can be read at all. Throws a RequestError, `data.file`, under the file's name. */
export function checkFile(path: string, name = path): number {
  const stat = attempt(name, () => statSync(path));
  if (!stat.isFile()) throw unreadable(name, stat.isDirectory() ? "is a directory" : "is not a file");
  if (stat.size === 0) throw unreadable(name, "is empty");
  return stat.size;
}

function attempt<T>(file: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    throw unreadable(file, missing ? "no such file" : `cannot be read: ${textOf(error)}`);
  }
}

export const unreadable = (
  file: string,
  why: string,
  hint = "name a file of rows; paths in a recipe are relative to it",
): RequestError => new RequestError("data.file", `${file}: ${why}`, hint);
