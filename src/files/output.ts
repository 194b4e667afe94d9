// The output folder of a run: one run has it to itself, from its beginning to its end, and only that run's files are in it.

import { linkSync, lstatSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isTemporary, makeFolder, removeQuietly } from "../base/atomic.ts";
import { RequestError, textOf } from "../base/errors.ts";
import { hintOf } from "../base/faults.ts";
import { log } from "../base/log.ts";
import { processOf, stampOfProcess } from "../base/process.ts";
import { randomText } from "../base/secret.ts";
import { removeHalfCheckpoints } from "./checkpoint.ts";
import { isHalfMarker, isRun, writeMarker } from "./marker.ts";
import { foldersIn, removeFiles, removeFolder } from "./owned.ts";

const LOCK = ".mlora.lock";
const isLock = (name: string): boolean => name.startsWith(LOCK);

/**
 * `continued`: an earlier run has been here. `begin`, when nothing can be refused any more, makes the folder a run's and
 * removes what a killed run left half written there; a RequestError, `output.foreign`, where the place of a checkpoint or an
 * adapter is a link.
 */
export type Claim = Disposable & { readonly continued: boolean; readonly begin: (places: Places) => void };

/** Names of the folders in a run's folder: those of its adapters, and where all their checkpoints are. */
export type Places = { readonly adapters: readonly string[]; readonly checkpoints: string };

/**
 * Makes the folder and takes it. A RequestError "output.*" where a run that has not ended has it, where it holds other files
 * than a run's, or where it cannot be written. Disposing gives the lock back; the folder stays.
 */
export function claimOutput(folder: string): Claim {
  try {
    const there = statSync(folder, { throwIfNoEntry: false });
    if (there && !there.isDirectory())
      throw new RequestError("output.folder", `${folder} is no folder`, "choose another output");
    makeFolder(folder);
    const lock = takeLock(join(folder, LOCK));
    try {
      const continued = isRun(folder, isLock);
      const begin = (places: Places) => {
        refuseLinks(folder, places);
        if (!continued) writeMarker(folder);
        tidy(folder, places);
      };
      return { continued, begin, ...lock };
    } catch (error) {
      lock[Symbol.dispose]();
      throw error;
    }
  } catch (error) {
    if (error instanceof RequestError) throw error;
    throw new RequestError(
      "output.folder",
      `cannot use ${folder} for the output: ${textOf(error)}`,
      hintOf(error) ?? "choose a folder that you may write to",
    );
  }
}

/** The files that a run writes into its folder, and into that of an adapter. */
const OF_RUN = ["recipe.toml", "added.toml", "paused.json", "run.json", "metrics.jsonl", "completions.jsonl"];
const OF_ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "README.md"];

const isHalf = (names: readonly string[]) => (name: string) => names.some((of) => isTemporary(name, of));

/** Removes what killed runs left half written, in the places where a run writes it. */
function tidy(folder: string, places: Places): void {
  try {
    removeHalves(folder, places);
  } catch (error) {
    log(0, () => `notice: what an earlier run left half written is still there: ${textOf(error)}`);
  }
}

function removeHalves(folder: string, { adapters, checkpoints }: Places): void {
  removeFiles(folder, (name) => isHalfMarker(name) || isHalf(OF_RUN)(name) || isLeftLock(folder, name));
  for (const adapter of adapters) {
    const place = join(folder, adapter);
    if (isOwnFolder(place)) removeFiles(place, isHalf(OF_ADAPTER));
  }
  for (const adapter of foldersIn(join(folder, checkpoints)))
    for (const which of ["", "best"]) removeHalfCheckpoints(join(folder, checkpoints, adapter, which));
}

/** Removes what an adapter that could not be saved has left: its files, and its folder where nothing else is in it. */
export const removeAdapter = (folder: string): void =>
  removeFolder(folder, (name) => OF_ADAPTER.includes(name) || isHalf(OF_ADAPTER)(name));

const isOwnFolder = (path: string): boolean => lstatSync(path, { throwIfNoEntry: false })?.isDirectory() ?? true;

/** A link, or a file, in the place of a folder that the run writes would have it write elsewhere. */
function refuseLinks(folder: string, { adapters, checkpoints }: Places): void {
  const wrong = [checkpoints, ...adapters].find((name) => !isOwnFolder(join(folder, name)));
  if (wrong === undefined) return;
  throw new RequestError(
    "output.foreign",
    `${join(folder, wrong)} is a link or a file, expected a folder of the run`,
    "move it away, or choose another output",
  );
}

/** Takes a lock, also from a process that is gone. Throws a RequestError, `output.locked`, where its holder is not gone. */
function takeLock(path: string): Disposable {
  const text = `${stampOfProcess()}\n`;
  while (!makeLock(path, text)) {
    if (!isStale(path)) continue; // it has just been given back
    // Of several that see this one alone may remove it, and looks again: what the others would remove is what that one makes.
    using _ = takeLock(`${path}.stale`);
    if (isStale(path)) rmSync(path, { force: true });
  }
  return { [Symbol.dispose]: () => release(path, text) };
}

/** The file comes with its text in it, so that no process takes it for one that says nothing; false where there is one. */
function makeLock(path: string, text: string): boolean {
  const own = `${path}.${randomText(12)}`;
  try {
    writeFileSync(own, text);
    linkSync(own, path);
    return true;
  } catch (error) {
    const { code = "" } = error as { code?: string };
    if (code === "EEXIST") return false;
    if (["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(code)) return makePlainly(path, text);
    throw error;
  } finally {
    removeQuietly(own);
  }
}

/** Where a file cannot have two names: for a moment this one says nothing, and would be taken for stale. */
function makePlainly(path: string, text: string): boolean {
  try {
    writeFileSync(path, text, { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as { code?: string }).code === "EEXIST") return false;
    throw error;
  }
}

/**
 * Whether there is a lock whose holder is gone; false for none. Throws a RequestError, `output.locked`, where its holder is
 * not.
 */
function isStale(path: string): boolean {
  const text = readLock(path);
  const holder = text === null ? null : processOf(text.trimEnd());
  if (holder === null) return text !== null;
  const { pid, elsewhere } = holder;
  const folder = path.slice(0, path.lastIndexOf(LOCK) - 1);
  throw new RequestError(
    "output.locked",
    `${folder} is in use by another mlora, process ${pid}${elsewhere === null ? "" : ` on ${elsewhere}`}`,
    `wait for it, or choose another output${elsewhere === null ? "" : `; if it is gone, remove ${path}`}`,
  );
}

/** Null where there is none. */
function readLock(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT") return null;
    throw new Error(`${path} is no lock: ${textOf(error)}`);
  }
}

/** What processes that were killed while they took the folder left next to its lock. */
function isLeftLock(folder: string, name: string): boolean {
  if (!isLock(name) || name === LOCK) return false;
  try {
    const text = readLock(join(folder, name));
    return text !== null && text !== "" && processOf(text.trimEnd()) === null; // without a text it is being written
  } catch {
    return false;
  }
}

/** Gives a lock back that is still ours; one that cannot be removed is stale from now on. */
function release(path: string, text: string): void {
  try {
    if (readLock(path) === text) removeQuietly(path);
  } catch {
    // its disk is gone
  }
}
