// The output folder of a run: one run has it to itself, from its beginning to its end, and nobody else's files are in it.

import { linkSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";
import { processOf, stampOfProcess } from "../base/process.ts";
import { randomText } from "../base/secret.ts";
import { hintOf, removeQuietly } from "./atomic.ts";

const LOCK = ".mlora.lock";
/** What a run writes first: where it is, a run has been. */
const FIRST = "recipe.toml";

/** `continued`: an earlier run has been here. */
export type Claim = Disposable & { readonly continued: boolean };

/**
 * Makes the folder and takes it. A RequestError "output.*" where a run that goes on has it, where it holds other files than a run's,
 * or where it cannot be written. Disposing gives the lock back; the folder stays.
 */
export function claimOutput(folder: string): Claim {
  try {
    mkdirSync(folder, { recursive: true });
    const lock = takeLock(join(folder, LOCK));
    try {
      return { continued: lookInto(folder), ...lock };
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

/** Files and checkpoints that a killed run was about to write: files/atomic.ts and files/checkpoint.ts name them so. */
const HALF_WRITTEN = /\.\d+\.tmp$|(^|\/)step-\d+\.part$/;

/** Whether a run has been here; what it left half written is removed. Throws a RequestError where others have been. */
function lookInto(folder: string): boolean {
  const ours = (name: string) => name.startsWith(LOCK) || (name.startsWith(FIRST) && HALF_WRITTEN.test(name));
  const found = readdirSync(folder).filter((name) => !ours(name));
  const continued = found.includes(FIRST);
  if (found.length > 0 && !continued)
    throw new RequestError(
      "output.foreign",
      `${folder} is not empty: it holds ${found.slice(0, 3).join(", ")}`,
      "choose another output, or move this one away",
    );
  for (const name of readdirSync(folder, { recursive: true }).map(String))
    if (HALF_WRITTEN.test(name)) removeQuietly(join(folder, name));
  return continued;
}

/** Takes a lock, from who is gone, too. Throws a RequestError, `output.locked`, where somebody has it. */
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

/** The file comes with its text in it, so that nobody takes it for one that says nothing; false where there is one. */
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

/** Whether there is a lock whose holder is gone; false for none. Throws a RequestError, `output.locked`, where its holder is not. */
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

/** Gives a lock back that is still ours; one that cannot be removed is stale from now on. */
function release(path: string, text: string): void {
  try {
    if (readLock(path) === text) removeQuietly(path);
  } catch {
    // its disk is gone
  }
}
