// What a model's folder says of how it ends a text.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { RequestError } from "../base/errors.ts";
import { readJsonObject } from "./json.ts";

export const GENERATION = "generation_config.json";

/** The ids that end a text: eos_token_id of generation_config.json, else of config.json; a number, a list, or none. */
export function stopTokens(folder: string): readonly number[] {
  for (const name of [GENERATION, "config.json"]) {
    const path = join(folder, name);
    const ids = existsSync(path) ? readJsonObject(path, "model.generation")["eos_token_id"] : null;
    if (ids == null) continue;
    const list: unknown[] = Array.isArray(ids) ? ids : [ids];
    if (!list.every((id): id is number => Number.isInteger(id) && (id as number) >= 0))
      throw new RequestError("model.generation", `${path}: eos_token_id is ${JSON.stringify(ids)}, expected token ids`);
    return list;
  }
  return [];
}

/** What transformers takes from config.json where there is no generation_config.json. */
const TAKEN = ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"];

/**
 * Writes the generation_config.json of `base` to `folder` with `ends` among the ids that end a text. Returns those that were
 * not among them; where there are none, nothing is written.
 */
export function writeStopTokens(base: string, folder: string, ends: readonly number[]): readonly number[] {
  const stops = stopTokens(base);
  const added = ends.filter((id) => !stops.includes(id));
  if (added.length === 0) return [];
  const path = join(base, GENERATION);
  const config = existsSync(path)
    ? readJsonObject(path, "model.generation")
    : Object.fromEntries(
        Object.entries(readJsonObject(join(base, "config.json"), "model.config")).filter(([key]) => TAKEN.includes(key)),
      );
  const ids = [...stops, ...added];
  writeFileAtomic(
    join(folder, GENERATION),
    `${JSON.stringify({ ...config, eos_token_id: ids.length === 1 ? ids[0] : ids }, null, 2)}\n`,
  );
  return added;
}
