// What a model says of how it ends a text.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { RequestError } from "../base/errors.ts";
import { readModelConfig } from "./config.ts";
import { configOfGguf } from "./gguf/model.ts";
import { jsonLike, readJsonObject } from "./json.ts";
import { modelPlace } from "./modelpath.ts";

export const GENERATION = "generation_config.json";

/**
 * The ids that end a text of the model at `model`: eos_token_id of generation_config.json, else of config.json or a GGUF; a
 * number, a list, or none.
 */
export function stopTokens(model: string): readonly number[] {
  const { folder, gguf } = modelPlace(model);
  for (const path of [join(folder, GENERATION), gguf ?? join(folder, "config.json")]) {
    const config = !existsSync(path) ? {} : path === gguf ? configOfGguf(path) : readJsonObject(path, "model.generation");
    const ids = config["eos_token_id"];
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
  const path = join(modelPlace(base).folder, GENERATION);
  const isThere = existsSync(path);
  const config = isThere
    ? readJsonObject(path, "model.generation")
    : Object.fromEntries(Object.entries(readModelConfig(base).config).filter(([key]) => TAKEN.includes(key)));
  const ids = [...stops, ...added];
  const written = { ...config, eos_token_id: ids.length === 1 ? ids[0] : ids };
  writeFileAtomic(join(folder, GENERATION), jsonLike(written, isThere ? readFileSync(path, "utf8") : "{}"));
  return added;
}
