// Writing files so that no reader ever sees half of one: a temporary name next to it, synced, then renamed.

import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  renameSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname, resolve } from "node:path";
import { MloraError, RunError, textOf } from "./errors.ts";
import { writeError } from "./faults.ts";
import { log } from "./log.ts";
import { randomText } from "./secret.ts";

/** The name of a file that is being written: no other file has it, and `isTemporary` knows it. */
const temporaryOf = (path: string): string => `${path}.${process.pid}-${randomText(6)}.tmp`;

/** Whether `name` is that of `of`, half written: one that only this program gives. */
export const isTemporary = (name: string, of: string): boolean =>
  name.startsWith(`${of}.`) && /^\d+(-[a-z0-9]{6})?\.tmp$/.test(name.slice(of.length + 1));

/** Runs `fill` on a new file that takes the name `path` when it is whole. Throws a RunError; then `path` is as it was. */
export function replaceFile(path: string, fill: (write: (bytes: Uint8Array) => void, fd: number) => void, mode = 0o644): void {
  const temporary = temporaryOf(path);
  try {
    makeFolder(dirname(path));
    const fd = openSync(temporary, "wx", mode); // a new file: no link is followed
    try {
      fill((bytes) => writeAll(fd, bytes), fd);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
    if (dirname(path) !== together) syncFolder(dirname(path));
  } catch (error) {
    removeQuietly(temporary);
    throw writeError(path, error);
  }
}

/** A folder that is synced when all its files are written. */
let together: string | null = null;

/**
 * Runs `write`, which replaces files of this folder: their names last together, when this returns. Throws a RunError, and what
 * `write` throws.
 */
export function replaceTogether(folder: string, write: () => void): void {
  const outer = together;
  together = folder;
  try {
    write();
    syncFolder(folder);
  } catch (error) {
    throw error instanceof MloraError ? error : writeError(folder, error);
  } finally {
    together = outer;
  }
}

/** Removes a file, if it can: the fault that is reported is the first one, not that of cleaning up after it. */
export function removeQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It was never there, or its disk is gone.
  }
}

export const writeFileAtomic = (path: string, data: string | Uint8Array, mode?: number): void =>
  replaceFile(path, (write) => write(typeof data === "string" ? new TextEncoder().encode(data) : data), mode);

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done);
}

/** Makes a folder and those above it that are missing, each of which lasts when this returns. */
export function makeFolder(path: string): void {
  const first = mkdirSync(path, { recursive: true });
  if (first === undefined) return;
  for (let at = resolve(path); at.length >= resolve(first).length; at = dirname(at)) syncFolder(dirname(at));
}

const CANNOT_SYNC = ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES"];
let noticed = false;

/**
 * A rename lasts only once its folder is on the disk. Some file systems cannot sync folders: one notice, and it is left to
 * them.
 */
export function syncFolder(folder: string): void {
  let fd: number | null = null;
  try {
    fd = openSync(folder, "r");
    fsyncSync(fd);
  } catch (error) {
    if (!CANNOT_SYNC.includes((error as { code?: string }).code ?? "")) throw error;
    if (!noticed)
      log(0, () => `notice: ${folder} cannot be synced (${textOf(error)}): a power cut may undo the last files written`);
    noticed = true;
  } finally {
    if (fd !== null) closeSync(fd);
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
        // or the line would be lost
        if (counted && fstatSync(fd).nlink === 0) throw new RunError("files.removed", `cannot write ${path}: it was removed`);
        appendWhole(fd, new TextEncoder().encode(`${line}\n`));
      } catch (error) {
        throw error instanceof MloraError ? error : writeError(path, error);
      }
    },
    [Symbol.dispose]: () => {
      if (fd !== null) closeSync(fd);
      fd = null;
    },
  };
}

/** `release`: lets the file go until the next line, so that another can take its place. */
export type LazyAppender = Appender & { readonly release: () => void };

/** The same for a file that is opened, and made, with its first line. */
export function lazyAppender(path: string): LazyAppender {
  let file: Appender | null = null;
  return {
    append: (line) => {
      file ??= openAppender(path);
      file.append(line);
    },
    release: () => {
      file?.[Symbol.dispose]();
      file = null;
    },
    [Symbol.dispose]: () => file?.[Symbol.dispose](),
  };
}

/** Puts bytes at the end of a file, all or none; makes it, and its folder, where they are missing. Throws a RunError. */
export function appendBytes(path: string, bytes: Uint8Array): void {
  let fd: number | null = null;
  try {
    makeFolder(dirname(path));
    fd = openSync(path, "a", 0o644);
    appendWhole(fd, bytes);
  } catch (error) {
    throw error instanceof MloraError ? error : writeError(path, error);
  } finally {
    if (fd !== null) closeSync(fd);
  }
}

/** All of the bytes at the end of the file, or none of them. */
function appendWhole(fd: number, bytes: Uint8Array): void {
  const stat = fstatSync(fd);
  try {
    writeAll(fd, bytes);
  } catch (error) {
    if (stat.isFile()) ftruncateSync(fd, stat.size);
    throw error;
  }
}
