// A folder for files that the system has to open by a path, unpacked from the binary: named by the hash of their content, put
// there by a rename, so that any number of processes may do it at once.
//
// A library that is opened is code that is run. So a file is used only after its hash was computed again, and only in a folder
// that other users cannot write to.

import {
  accessSync,
  closeSync,
  constants,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, isAbsolute, join, resolve } from "node:path";
import { environment } from "./env.ts";
import { RunError, textOf } from "./errors.ts";

const STICKY = 0o1000;
const OTHERS_WRITE = 0o022;
const PIECE_BYTES = 1 << 16;

/** Folders to try, the best first. Where MLORA_CACHE names a folder, it is the only one: no other takes its place unnoticed. */
export function cacheFolders(): readonly string[] {
  const chosen = environment("MLORA_CACHE");
  if (chosen) return [resolve(chosen)];
  const [xdg, home] = [environment("XDG_CACHE_HOME"), environment("HOME")];
  const folders = [xdg && join(xdg, "mlora"), home && join(home, ".cache", "mlora"), join(tmpdir(), `mlora-${user()}`)];
  return folders.filter((folder) => folder !== undefined && isAbsolute(folder)) as string[];
}

/**
 * The path of an executable file of this name and content; `content` is asked for when it has to be written. Throws a RunError,
 * `cache.unusable`, that says of each folder why it would not do.
 */
export function cachedFile(
  name: string,
  sha256: string,
  content: () => Uint8Array,
  folders: readonly string[] = cacheFolders(),
): string {
  const faults: string[] = [];
  for (const folder of folders)
    try {
      const shelf = ownFolder(folder, sha256.slice(0, 32));
      const path = join(shelf, basename(name));
      if (!holds(path, sha256)) put(path, content());
      if (!runnable(path)) throw new Error("programs may not run there (mounted noexec?)");
      return path;
    } catch (error) {
      faults.push(`  ${folder}: ${textOf(error)}`);
    }
  throw new RunError(
    "cache.unusable",
    `no folder to unpack ${name} into:\n${faults.join("\n")}`,
    "set MLORA_CACHE to a folder of your own on a disk with room, where programs may run",
  );
}

/** The folder `name` in a cache folder, made where it is missing. Throws an Error where others could write in it. */
export function ownFolder(cache: string, name: string): string {
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  const real = realpathSync(cache); // a link may be moved elsewhere after it was looked at
  refuseForeign(real, true);
  const folder = join(real, name);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  refuseForeign(folder, false);
  return folder;
}

const user = (): number => process.geteuid?.() ?? 0;

/** Others may share the folder above ours only where the sticky bit keeps them from what is ours, as in /tmp. */
function refuseForeign(folder: string, shared: boolean): void {
  const { uid, mode } = lstatSync(folder);
  const sticky = shared && (mode & STICKY) !== 0;
  if (uid !== user() && !(sticky && uid === 0)) throw new Error(`it belongs to user ${uid}, not to ${user()}`);
  if ((mode & OTHERS_WRITE) !== 0 && !sticky) throw new Error("others may write in it");
}

/** In pieces through one buffer: to get memory for all 25 MB of OpenBLAS takes two thirds of the time that its hash takes. */
function holds(path: string, sha256: string): boolean {
  let file: number | undefined;
  try {
    file = openSync(path, "r");
    const [hasher, piece] = [new Bun.CryptoHasher("sha256"), new Uint8Array(PIECE_BYTES)];
    for (;;) {
      const read = readSync(file, piece);
      if (read === 0) return hasher.digest("hex") === sha256;
      hasher.update(piece.subarray(0, read));
    }
  } catch {
    return false; // not there, or not to be read: it will be put there, and that says what is wrong
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

/** False also on a file system that is mounted noexec, even for root. */
function runnable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

function put(path: string, content: Uint8Array): void {
  const making = mkdtempSync(`${path}-`);
  try {
    const file = join(making, "file");
    writeFileSync(file, content, { mode: 0o700 });
    renameSync(file, path);
  } finally {
    rmSync(making, { recursive: true, force: true });
  }
}
