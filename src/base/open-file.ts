// A file that is read piece by piece.

import { closeSync, constants, fstatSync, openSync } from "node:fs";

/**
 * A descriptor of a regular file, to read from. Throws the system's error, and an Error for what is no file: a pipe is not
 * waited for, and a device has no end.
 */
export function openToRead(path: string): number {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const stat = fstatSync(fd);
  if (stat.isFile()) return fd;
  closeSync(fd);
  throw new Error(stat.isDirectory() ? "it is a folder" : "it is no regular file");
}
