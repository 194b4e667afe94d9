// Limits of a request from another process: the files that the run may read for it, and the rows that the answer may quote.
// The run may be root's, and rows are private.

import { existsSync, readdirSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { isRemote } from "../../base/source-name.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { localFiles } from "../../sources/local.ts";
import { referenceFolder } from "../state/sources.ts";

/** Throws a RequestError, `data.owner`, where this user could read a file that the adapters name only as root. */
export function checkReadable(adapters: readonly AdapterRecipe[]): void {
  for (const { name, train, eval: heldOut, initialAdapter, objective } of adapters) {
    const files = [...train, ...heldOut].flatMap((name) => (isRemote(name) ? [] : localFiles(name).map(({ path }) => path)));
    for (const path of [...files, initialAdapter, referenceFolder(objective)]) {
      const closed = path === null ? null : closedOn(path);
      if (closed !== null)
        throw new RequestError(
          "data.owner",
          `adapter '${name}': ${path} cannot be read: ${closed} belongs to another user and is not open to all`,
          "have its owner make it readable, or copy it",
        );
    }
  }
}

const [READ, ENTER] = [0o4, 0o1] as const;

/** The first path closed to this user, of the file's folders, itself, or a folder's files; null for none, or no file. */
function closedOn(path: string): string | null {
  if (!existsSync(path)) return null;
  const real = realpathSync(path);
  const folders: string[] = [];
  for (let at = dirname(real); at !== folders.at(-1); at = dirname(at)) folders.push(at);
  const isFolder = statSync(real).isDirectory();
  if (isFolder) folders.unshift(real);
  const shut = folders.find((folder) => !isOpen(folder, ENTER)) ?? (isOpen(real, READ) ? null : real);
  if (shut !== null || !isFolder) return shut;
  return readdirSync(real).flatMap((name) => closedOn(join(real, name)) ?? [])[0] ?? null;
}

/** By owner, group and other bits, as the kernel decides for a process without root's privileges. */
function isOpen(path: string, wanted: number): boolean {
  const { uid, gid, mode } = statSync(path);
  if (uid === process.getuid!()) return true;
  return ((process.getgroups!().includes(gid) ? mode >> 3 : mode) & wanted) !== 0;
}

/** The error without the text of rows, for an answer that travels: their places alone. */
export function withoutRows(error: unknown, recipe: string): unknown {
  if (!(error instanceof RequestError) || error.code !== "data.row") return error;
  const places = error.message.split("\n").flatMap((line) => /^(.+?:\d+): /.exec(line)?.[1] ?? []);
  const what = places.length === 0 ? "rows" : `the rows at ${places.join(", ")}`;
  return new RequestError("data.row", `${what} cannot be read as training data`, `mlora plan ${recipe} says what is wrong`);
}
