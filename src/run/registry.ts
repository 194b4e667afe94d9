// The runs that go on here and now: a file for each, that only this user may read, since it says how the run is reached. A run that was
// killed leaves its file; whoever looks next takes it away.

import { readdirSync, readFileSync, rmSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { isRunning } from "../base/machine.ts";
import { addressSchema } from "../bus/address.ts";
import { writeFileAtomic } from "../files/atomic.ts";

const FOLDER = "runs";

const entry = v.strictObject({
  run: v.string(),
  host: v.string(),
  pid: v.pipe(v.number(), v.safeInteger(), v.minValue(1)),
  /** The run's folder. */
  output: v.string(),
  address: addressSchema,
});
export type RunEntry = v.InferOutput<typeof entry>;

/** Makes a run known until it is disposed; null where no folder can be had for that. */
export function announce(run: Omit<RunEntry, "host" | "pid">): Disposable | null {
  for (const cache of cacheFolders())
    try {
      const path = join(ownFolder(cache, FOLDER), `${run.run}.json`);
      writeFileAtomic(path, `${JSON.stringify({ ...run, host: hostname(), pid: process.pid })}\n`, 0o600);
      return { [Symbol.dispose]: () => rmSync(path, { force: true }) };
    } catch {
      // the next folder may do
    }
  return null;
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
    const found = v.parse(entry, JSON.parse(readFileSync(path, "utf8")));
    if (found.host !== hostname()) return null; // the folder is shared by several machines
    if (isRunning(found.pid)) return found;
    rmSync(path, { force: true });
  } catch {
    // half a file, or another version's
  }
  return null;
}
