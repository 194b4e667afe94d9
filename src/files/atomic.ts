// Writing files so that nobody ever sees half of one: a temporary name beside it, synced, then renamed.

import { closeSync, fstatSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { RunError, textOf } from "../base/errors.ts";

const HINTS: Readonly<Record<string, string>> = {
  ENOSPC: "make room on the disk",
  EDQUOT: "make room in your quota",
  EACCES: "choose a folder that you may write to",
  EPERM: "choose a folder that you may write to",
  EROFS: "choose a folder on a disk that may be written",
};

/** The way out of a failed write, where there is one. */
export const hintOf = (error: unknown): string | undefined => HINTS[(error as { code?: string }).code ?? ""];

/** What a failed write becomes: the path, the system's reason, the way out. */
export const writeError = (path: string, error: unknown): RunError =>
  new RunError("files.write", `cannot write ${path}: ${textOf(error)}`, hintOf(error), { cause: error });

/** Runs `fill` on a new file that takes the name `path` when it is whole. Throws a RunError; then `path` is as it was. */
export function replaceFile(path: string, fill: (write: (bytes: Uint8Array) => void) => void, mode = 0o644): void {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    mkdirSync(dirname(path), { recursive: true });
    const fd = openSync(temporary, "w", mode);
    try {
      fill((bytes) => writeAll(fd, bytes));
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
    syncFolder(dirname(path));
  } catch (error) {
    removeQuietly(temporary);
    throw writeError(path, error);
  }
}

/** Removes a file or a folder, if it can: the fault that is told is the first one, not that of cleaning up after it. */
export function removeQuietly(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch {
    // It was never there, or its disk is gone.
  }
}

export const writeFileAtomic = (path: string, data: string | Uint8Array, mode?: number): void =>
  replaceFile(path, (write) => write(typeof data === "string" ? new TextEncoder().encode(data) : data), mode);

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done);
}

/** A rename lasts only once its folder is on the disk. */
export function syncFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** A file that grows by whole lines. */
export type Appender = Disposable & { readonly append: (line: string) => void };

/** Opens `path` for appending. Each line is one write, so that a reader sees whole lines. */
export function openAppender(path: string): Appender {
  let fd: number | null;
  let counted: boolean;
  try {
    fd = openSync(path, "a", 0o644);
    counted = fstatSync(fd).nlink > 0; // not every file system does
  } catch (error) {
    throw writeError(path, error);
  }
  return {
    append: (line) => {
      try {
        if (fd === null) return;
        if (counted && fstatSync(fd).nlink === 0) throw new Error("it was removed"); // what is written now would be lost
        writeAll(fd, new TextEncoder().encode(`${line}\n`));
      } catch (error) {
        throw writeError(path, error);
      }
    },
    [Symbol.dispose]: () => {
      if (fd !== null) closeSync(fd);
      fd = null;
    },
  };
}
