// What a request to add adapters may have the run read, and what its answer may say of it: the run may be root's, and rows are private.

import { existsSync, statSync } from "node:fs";
import { RequestError } from "../base/errors.ts";
import { referenceOf } from "../base/objective.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";

/** Throws a RequestError, `data.owner`, where a file that the adapters name is one that this user could not read but as root. */
export function checkReadable(adapters: readonly AdapterRecipe[]): void {
  for (const { name, train, eval: held, initialAdapter, objective } of adapters) {
    const reference = referenceOf(objective);
    const folder = reference !== null && typeof reference === "object" ? reference.folder : null;
    for (const path of [...train, ...held, initialAdapter, folder])
      if (path !== null && existsSync(path) && !isOurs(path))
        throw new RequestError(
          "data.owner",
          `adapter '${name}': ${path} belongs to another user and is not open to all`,
          "have its owner make it readable, or copy it",
        );
  }
}

/** By owner, group and others, as the kernel decides for a process without root's privileges. */
function isOurs(path: string): boolean {
  const { uid, gid, mode } = statSync(path);
  if (uid === process.getuid!()) return true;
  return ((process.getgroups!().includes(gid) ? mode >> 3 : mode) & 0o4) !== 0;
}

/** An error without the text of rows: the places alone, for an answer that travels. */
export function withoutRows(error: unknown, recipe: string): unknown {
  if (!(error instanceof RequestError) || error.code !== "data.row") return error;
  const places = error.message.split("\n").flatMap((line) => /^(.+?:\d+): /.exec(line)?.[1] ?? []);
  const what = places.length === 0 ? "rows" : `the rows at ${places.join(", ")}`;
  return new RequestError("data.row", `${what} cannot be read as training data`, `mlora plan ${recipe} says what is wrong`);
}
