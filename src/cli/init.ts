// `mlora init MODEL DATA`: a recipe to begin with, and its schema next to it.

import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { RequestError } from "../base/errors.ts";
import { writeStdout } from "../base/terminal.ts";
import { shortPath } from "../base/units.ts";
import { openFirstRecipe } from "../session/preparation/first-recipe.ts";
import { fileOf } from "./flags.ts";
import { SCHEMA_FILE, schemaText } from "./schema.ts";

export async function init(model: string, data: string, output: string): Promise<void> {
  const path = resolve(fileOf("output", output));
  if (existsSync(path))
    throw new RequestError("init.exists", `${shortPath(path)} is there already`, "name another file with --output");
  const text = await openFirstRecipe(model, data, path);
  writeFileAtomic(join(dirname(path), SCHEMA_FILE), schemaText());
  writeFileAtomic(path, text);
  const name = shortPath(path);
  writeStdout(`wrote ${name}; next: mlora data ${name}, mlora plan ${name}, mlora run ${name}\n`);
}
