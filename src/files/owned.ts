// Removing what this program has written, and nothing else: by the names that it gives, in folders that are reached through no
// link.

import { closeSync, constants, lstatSync, openSync, readdirSync, readFileSync, rmdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { RunError, textOf } from "../base/errors.ts";
import { hintOf } from "../base/faults.ts";

/** Faults after which a folder that may hold other files is left as it is. */
const KEPT = ["ENOENT", "ENOTEMPTY", "EEXIST"];
const codeOf = (error: unknown): string => (error as { code?: string }).code ?? "";

/**
 * Runs `use` with a path of the folder that still names this folder, whatever is put in its place meanwhile, and the names in
 * it. Null where there is no folder of that name; a link to one does not count.
 */
function within<T>(folder: string, use: (path: string, names: readonly string[]) => T): T | null {
  let fd: number;
  try {
    fd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG"].includes(codeOf(error))) return null;
    throw new RunError("files.folder", `cannot read ${folder}: ${textOf(error)}`, hintOf(error), { cause: error });
  }
  try {
    const path = `/proc/self/fd/${fd}`;
    return use(path, readdirSync(path));
  } catch (error) {
    if (error instanceof RunError) throw error;
    throw new RunError("files.remove", `cannot change ${folder}: ${textOf(error)}`, hintOf(error), { cause: error });
  } finally {
    closeSync(fd);
  }
}

/** What a name stands for; undefined where a thread that renames or removes has taken it away since it was listed. */
const kindOf = (path: string) => lstatSync(path, { throwIfNoEntry: false });

/** Names of the folders in a folder; links to folders do not count. */
export const foldersIn = (folder: string): string[] =>
  within(folder, (path, names) => names.filter((name) => kindOf(join(path, name))?.isDirectory())) ?? [];

/** The text of a file in a folder; null where there is none. Neither may be a link. */
export function readOwn(folder: string, name: string): string | null {
  return within(folder, (path, names) => {
    const file = join(path, name);
    if (!names.includes(name) || !kindOf(file)?.isFile()) return null;
    const fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      return readFileSync(fd, "utf8");
    } finally {
      closeSync(fd);
    }
  });
}

/** Removes the files of a folder whose names `isOurs`; a link of such a name is left. */
export function removeFiles(folder: string, isOurs: (name: string) => boolean): void {
  within(folder, (path, names) => {
    for (const name of names) if (isOurs(name) && kindOf(join(path, name))?.isFile()) unlinkSync(join(path, name));
  });
}

/** Removes the files of a folder whose names `isOurs`, and the folder where nothing else is in it. */
export function removeFolder(folder: string, isOurs: (name: string) => boolean): void {
  removeFiles(folder, isOurs);
  try {
    if (kindOf(folder)?.isDirectory()) rmdirSync(folder);
  } catch (error) {
    if (!KEPT.includes(codeOf(error))) throw error;
  }
}
