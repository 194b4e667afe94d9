// The output folder of a run: one run has it to itself, from its beginning to its end, and nobody else's files are in it.

import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";

const LOCK = ".mlora.lock";
const CHOOSE = "choose another output, or move this one away";

/** Who holds a lock: a process of this boot of this machine. */
const holder = (): string => `${process.pid} ${bootId()}`;

function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "unknown";
  }
}

/** True while the process that wrote the lock may still run. */
function isAlive(lock: string): boolean {
  const [pid, boot] = lock.trim().split(" ");
  if (boot !== bootId()) return false; // from before a restart
  try {
    process.kill(Number(pid), 0);
    return true;
  } catch (error) {
    return (error as { code?: string }).code === "EPERM"; // somebody else's, but alive
  }
}

/** `continued`: an earlier run has been here. */
export type Claim = Disposable & { readonly continued: boolean };

/**
 * Makes the folder and takes it. A RequestError "output.*" where a run that goes on has it, where it holds other files than a run's,
 * or where it cannot be written. Disposing gives the lock back; the folder stays.
 */
export function claimOutput(folder: string): Claim {
  const lock = join(folder, LOCK);
  try {
    mkdirSync(folder, { recursive: true });
    const found = readdirSync(folder).filter((name) => name !== LOCK);
    const continued = found.includes("recipe.toml");
    if (found.length > 0 && !continued)
      throw new RequestError("output.foreign", `${folder} is not empty: it holds ${found.slice(0, 3).join(", ")}`, CHOOSE);
    takeLock(folder, lock);
    return { continued, [Symbol.dispose]: () => rmSync(lock, { force: true }) };
  } catch (error) {
    if (error instanceof RequestError) throw error;
    throw new RequestError(
      "output.folder",
      `cannot use ${folder} for the output: ${textOf(error)}`,
      "choose a folder that you may write to",
    );
  }
}

const inUse = (folder: string, pid: string) =>
  new RequestError(
    "output.locked",
    `${folder} is in use by another mlora, process ${pid}`,
    "wait for it, or choose another output",
  );

/** The process number of a living holder, or null; a stale lock is taken away. */
function liveHolder(lock: string): string | null {
  let text: string;
  try {
    text = readFileSync(lock, "utf8");
  } catch {
    return null;
  }
  if (isAlive(text)) return text.split(" ")[0]!;
  rmSync(lock, { force: true });
  return null;
}

function takeLock(folder: string, lock: string): void {
  const busy = liveHolder(lock);
  if (busy) throw inUse(folder, busy);
  try {
    const fd = openSync(lock, "wx", 0o644); // only one of two that come at once
    writeSync(fd, holder());
    closeSync(fd);
  } catch (error) {
    if ((error as { code?: string }).code === "EEXIST") throw inUse(folder, liveHolder(lock) ?? "unknown");
    throw error;
  }
}
