// The spec of a Hugging Face model's folder.

import { statSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { specOf } from "../families/registry.ts";
import { readJsonObject } from "./json.ts";

/** Reads the spec of the model in `folder`. Throws a RequestError "model.*" that names file and key. */
export function readModelSpec(folder: string): ModelSpec {
  const stat = statSync(folder, { throwIfNoEntry: false });
  if (!stat?.isDirectory())
    throw new RequestError(
      "model.folder",
      `${folder}: ${stat ? "is not a folder" : "no such folder"}`,
      "model.path is a Hugging Face model's folder",
    );
  const path = join(folder, "config.json");
  if (!statSync(path, { throwIfNoEntry: false }))
    throw new RequestError("model.config", `${folder} has no config.json`, "model.path is a Hugging Face model's folder");
  return specOf(readJsonObject(path, "model.config"), path);
}
