// Folders of saved adapters and their base models, for commands on trained adapters.

import { readdirSync, realpathSync, type Stats, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { RequestError } from "../../base/errors.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { counted, shortPath } from "../../base/units.ts";
import { partOfWeights } from "../../engine/pool/initialise.ts";
import { openBaseModel } from "../../files/basemodel.ts";
import { readJsonObject } from "../../files/json.ts";
import { isModelPath, modelPlace } from "../../files/modelpath.ts";
import { readPeftAdapter, type SavedAdapter } from "../../files/peft.ts";
import type { PoolAdapter } from "../../methods/adapter.ts";
import { frozenAs } from "../../methods/registry.ts";

/** The command, for the codes of its errors, and its flag that names a base model. */
export type Asking = { readonly command: string; readonly flag: string };

export const isFolder = (path: string): boolean => statOf(path)?.isDirectory() ?? false;
export const isFile = (path: string): boolean => statOf(path)?.isFile() ?? false;

/** Undefined also of what is named below a file, of a circle of links, and of a name too long to be one. */
function statOf(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    if (["ENOTDIR", "ELOOP", "ENAMETOOLONG"].includes((error as { code?: string }).code ?? "")) return undefined;
    throw error;
  }
}

/** Names the adapters of a run whose output stands in place of one of them. */
function adapterHint(folder: string, command: string): string {
  const inside = isFolder(folder) ? readdirSync(folder).sort() : [];
  const found = inside.filter((name) => isFolder(join(folder, name)) && isFile(join(folder, name, "adapter_config.json")));
  const shown = found.slice(0, 3).map((name) => shortPath(join(folder, name)));
  if (shown.length === 0) return "name the folder of one adapter: the run's output and the adapter's name, as runs/first/sums";
  const further = found.length > shown.length ? ` or another of its ${counted(found.length, "adapter")}` : "";
  return `name one adapter: ${shown.join(", ")}${further}${command === "export" ? "; or give --all" : ""}`;
}

/** The base model's folder: the one that is named, or the one that the adapter names. */
export function baseOf(adapter: string, named: string | null, { command, flag }: Asking): string {
  const config = join(adapter, "adapter_config.json");
  if (!isFile(config))
    throw new RequestError(
      `${command}.adapter`,
      `${adapter} ${isFolder(adapter) ? "has no adapter_config.json" : "is no folder"}`,
      adapterHint(adapter, command),
    );
  const written = readJsonObject(config, "peft.config")["base_model_name_or_path"];
  const from = named ?? (typeof written === "string" ? written : "");
  const base = resolve(from);
  const hint = `give ${flag} the Hugging Face folder or GGUF file of the model that the adapter was trained on`;
  if (from === "") throw new RequestError(`${command}.base`, `${config} names no base model`, hint);
  if (!isModelPath(base)) {
    const what = named === null ? `${config}: the base model '${from}'` : `${flag} ${from}`;
    throw new RequestError(`${command}.base`, `${what} is no folder here`, hint);
  }
  if (modelPlace(base).gguf === null && !isFile(join(base, "config.json")))
    throw new RequestError(`${command}.base`, `${base} has no config.json`, hint);
  return realpathSync(base);
}

/**
 * Reads an adapter of the model at `base`; the error for one that does not fit names the flag to give. `merges`: also one that
 * can only be merged.
 */
export function adapterFor(folder: string, base: string, spec: ModelSpec, { flag }: Asking, merges = false): SavedAdapter {
  try {
    const open = () => openBaseModel(base, spec);
    return readPeftAdapter(folder, spec, partOfWeights(base, spec), { open, ...(merges ? { merges } : {}) });
  } catch (error) {
    if (!(error instanceof RequestError) || error.code !== "peft.tensors") throw error;
    const { code, message, hint } = error;
    throw new RequestError(code, message, hint ?? `give ${flag} the model that the adapter was trained on`, { cause: error });
  }
}

/** A saved adapter as a frozen one: a VeRA is a LoRA then. */
export const frozenOf = ({ rank, scale, targets, places, tables, method }: SavedAdapter): PoolAdapter => ({
  ...{ rank, scale, targets, method: frozenAs(method) },
  ...(places ? { places } : {}),
  ...(tables ? { tables } : {}),
});
