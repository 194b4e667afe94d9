// Paths and patterns of paths: the files here that a recipe's name stands for, in the order of their names.

import { existsSync, statSync } from "node:fs";
import { RequestError } from "../base/errors.ts";
import type { DataFile } from "../data/data-file.ts";

const MAGIC = /[*?[{]/;

/** The files of a path; of a pattern all that it matches. Throws a RequestError, `data.file`, where a pattern matches none. */
export function localFiles(name: string): readonly DataFile[] {
  if (!MAGIC.test(name) || existsSync(name)) return [{ name, path: name }];
  const parts = name.split("/");
  const fixed = parts.findIndex((part) => MAGIC.test(part));
  const folder = parts.slice(0, fixed).join("/") || (name.startsWith("/") ? "/" : ".");
  const pattern = parts.slice(fixed).join("/");
  const found = existsSync(folder) && statSync(folder).isDirectory() ? matches(folder, pattern) : [];
  if (found.length === 0)
    throw new RequestError(
      "data.file",
      `${name}: matches no file`,
      "a pattern has *, **, ?, [ab] or {a,b}; it matches files alone",
    );
  return found.map((path) => ({ name: path, path }));
}

const matches = (folder: string, pattern: string): string[] =>
  [...new Bun.Glob(pattern).scanSync({ cwd: folder, onlyFiles: true, followSymlinks: true })]
    .map((path) => `${folder === "/" ? "" : folder}/${path}`)
    .sort(byName);

/** By code points, whatever the language of the system. */
export const byName = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
