// What a model's folder says of how it ends a text.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { readJsonObject } from "./json.ts";

/** The ids that end a text: eos_token_id of generation_config.json, else of config.json; a number, a list, or none. */
export function stopTokens(folder: string): readonly number[] {
  for (const name of ["generation_config.json", "config.json"]) {
    const path = join(folder, name);
    const ids = existsSync(path) ? readJsonObject(path, "model.generation")["eos_token_id"] : null;
    if (ids == null) continue;
    const list: unknown[] = Array.isArray(ids) ? ids : [ids];
    if (!list.every((id): id is number => Number.isInteger(id) && (id as number) >= 0))
      throw new RequestError("model.generation", `${path}: eos_token_id is ${JSON.stringify(ids)}, wants token ids`);
    return list;
  }
  return [];
}
