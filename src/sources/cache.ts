// Folders of the cache for what was fetched or made from data: of this user alone, bounded, and safe to remove at any time.

import { readdirSync, rmSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { wallTime } from "../base/clock.ts";
import { RunError, textOf } from "../base/errors.ts";

/** Bytes of one folder of the cache at most. What is in use may be more. */
const MOST_BYTES = 200e9;
/** What was used within this time is in use. */
const IN_USE_MS = 24 * 3_600_000;

/** The folder `name` of the cache. Throws a RunError, `cache.unusable`. */
export function shelf(name: string): string {
  const faults: string[] = [];
  for (const folder of cacheFolders())
    try {
      return ownFolder(folder, name);
    } catch (error) {
      faults.push(`  ${folder}: ${textOf(error)}`);
    }
  throw new RunError(
    "cache.unusable",
    `no folder for ${name}:\n${faults.join("\n")}`,
    "set MLORA_CACHE to a folder of your own on a disk with room",
  );
}

/** Notes that a file or a folder of a shelf is used. */
export function touch(path: string): void {
  const time = wallTime() / 1000;
  try {
    utimesSync(path, time, time);
  } catch {
    // It is another's, or on a disk that cannot be written: then nothing is removed there, either.
  }
}

/** Removes what was not used for the longest, until the shelf is within its bound, and what killed processes have left. */
export function trim(folder: string, mostBytes = MOST_BYTES, inUseMs = IN_USE_MS): void {
  const found = readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    const stat = statSync(path, { throwIfNoEntry: false });
    return stat ? [{ path, bytes: stat.isDirectory() ? bytesIn(path) : stat.size, used: stat.mtimeMs }] : [];
  });
  let bytes = found.reduce((all, of) => all + of.bytes, 0);
  for (const of of found.sort((a, b) => a.used - b.used)) {
    if (wallTime() - of.used < inUseMs) return;
    if (bytes <= mostBytes && !of.path.endsWith(".tmp")) continue;
    rmSync(of.path, { recursive: true, force: true });
    bytes -= of.bytes;
  }
}

const bytesIn = (folder: string): number =>
  readdirSync(folder).reduce((all, name) => all + (statSync(join(folder, name), { throwIfNoEntry: false })?.size ?? 0), 0);
