// The runs under way on this machine: a file for each, which this user alone may read, since it has the address of the run
// and the key that seals its requests. A run that was killed leaves its file; the next look at the registry removes it.

import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { processOf, stampOfProcess } from "../base/process.ts";
import { type Address, addressSchema } from "../bus/address.ts";
import { type RunKey, runKeySchema } from "../bus/seal.ts";

const FOLDER = "runs";

const entry = v.strictObject({
  run: v.string(),
  /** The coordinator (base/process.ts). */
  process: v.string(),
  /** The run's folder. */
  output: v.string(),
  /** Null while its stages are being opened: it has no server then. The key is new each time. */
  reach: v.nullable(v.strictObject({ address: addressSchema, key: runKeySchema })),
});
type Entry = v.InferOutput<typeof entry>;
/** Where a run takes requests, and the key that seals requests and answers. */
export type Reach = { readonly address: Address; readonly key: RunKey };
export type RunEntry = Omit<Entry, "process"> & { readonly pid: number };

/** A run that is listed until it is disposed; `reachable` changes where it answers, null for nowhere just now. */
export type Announcement = Disposable & { readonly reachable: (reach: Reach | null) => void };

/** Lists a run, not yet reachable. Where no folder for that can be made the run stays unlisted. */
export function announce(run: Omit<Entry, "process" | "reach">): Announcement {
  knownRuns(); // removes files of killed runs
  const written = (path: string, reach: Reach | null) =>
    writeFileAtomic(path, `${JSON.stringify({ ...run, reach, process: stampOfProcess() })}\n`, 0o600);
  for (const cache of cacheFolders())
    try {
      const path = join(ownFolder(cache, FOLDER), `${run.run}.json`);
      written(path, null);
      return { reachable: (reach) => written(path, reach), [Symbol.dispose]: () => rmSync(path, { force: true }) };
    } catch {
      // the next folder may do
    }
  return { reachable: () => undefined, [Symbol.dispose]: () => undefined };
}

/** The runs on this machine, by their ids. */
export function knownRuns(): RunEntry[] {
  const entries = cacheFolders().flatMap((cache) => {
    try {
      const folder = ownFolder(cache, FOLDER);
      return readdirSync(folder).flatMap((name) => entryIn(join(folder, name)) ?? []);
    } catch {
      return [];
    }
  });
  return entries.sort((a, b) => (a.run < b.run ? -1 : 1));
}

function entryIn(path: string): RunEntry | null {
  if (!path.endsWith(".json")) return null;
  try {
    const { process: stamp, ...found } = v.parse(entry, JSON.parse(readFileSync(path, "utf8")));
    const holder = processOf(stamp);
    if (holder?.elsewhere === null) return { ...found, pid: holder.pid };
    if (!holder) rmSync(path, { force: true }); // else the folder is shared with another machine, where the run is under way
  } catch {
    // half a file, or another version's
  }
  return null;
}
