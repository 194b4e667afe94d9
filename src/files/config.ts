// The spec of a base model, by config.json or by what a GGUF says in its place.

import { statSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { specOf } from "../families/registry.ts";
import { configOfGguf } from "./gguf/model.ts";
import { type JsonObject, readJsonObject } from "./json.ts";
import { modelPlace } from "./modelpath.ts";
import { quantisationOf } from "./quantised/config.ts";

/** Reads the spec of the model at `path`. Throws a RequestError "model.*" or "gguf.*" that names file and key. */
export function readModelSpec(path: string): ModelSpec {
  const { file, config } = readModelConfig(path);
  quantisationOf(config, file); // before a weight is looked for
  return specOf(config, file);
}

/** The model's config.json, or what a GGUF has in its place, with the file that it is from. */
export function readModelConfig(path: string): { readonly file: string; readonly config: JsonObject } {
  const { folder, gguf } = modelPlace(path);
  if (gguf !== null) return { file: gguf, config: configOfGguf(gguf) };
  const file = join(folder, "config.json");
  if (!statSync(file, { throwIfNoEntry: false }))
    throw statSync(join(folder, "adapter_config.json"), { throwIfNoEntry: false })
      ? new RequestError(
          "model.config",
          `${folder} is an adapter, expected a base model`,
          `name its base model; give the adapter by --adapter to mlora generate, or by \`from\` in a recipe`,
        )
      : new RequestError(
          "model.config",
          `${folder} has no config.json`,
          "model.path is a Hugging Face model's folder, or a GGUF file",
        );
  return { file, config: readJsonObject(file, "model.config") };
}
