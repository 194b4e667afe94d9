// Whether a disk has room for what is about to be written: better known before the work than after it.

import { existsSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import { RequestError } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";

/** Throws a RequestError, `export.room`, where the disk of `path`, which need not be there yet, has less than `bytes` free. */
export function requireRoom(path: string, bytes: number): void {
  let there = path;
  while (!existsSync(there) && dirname(there) !== there) there = dirname(there);
  const { bavail, bsize } = statfsSync(there);
  const free = bavail * bsize;
  if (free >= bytes) return;
  throw new RequestError(
    "export.room",
    `${path} takes ${formatBytes(bytes)}, and its disk has ${formatBytes(free)} free`,
    "make room on the disk, or choose a folder on another one",
  );
}
