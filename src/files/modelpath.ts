// Where a base model lies: a Hugging Face folder, or a GGUF file with the tokenizer of the model next to it.

import { existsSync, readdirSync, type Stats, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";
import { counted } from "../base/units.ts";

export type ModelPlace = {
  /** Of the tokenizer and of the settings of generation. */
  readonly folder: string;
  /** The file of the weights, or the first of several; null for safetensors. */
  readonly gguf: string | null;
};

export const INDEX = "model.safetensors.index.json";
const HINT =
  'model.path is a Hugging Face model\'s folder, or a GGUF file; a model of the hub is named by model.name = "org/name"';

const isGguf = (path: string): boolean => /\.gguf$/i.test(path);
/** "model-00002-of-00003.gguf" */
export const SPLIT = /-(\d{5})-of-(\d{5})\.gguf$/i;
const isLater = (name: string): boolean => Number(SPLIT.exec(name)?.[1] ?? 1) > 1;

/** What a path names; undefined for nothing. Throws a RequestError, `model.folder`, where that cannot be said. */
function statOf(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw new RequestError("model.folder", `${path}: ${textOf(error)}`, HINT);
  }
}

/** Whether `path` can name a base model at all. */
export function isModelPath(path: string): boolean {
  const stat = statOf(path);
  return stat !== undefined && (stat.isDirectory() || (stat.isFile() && isGguf(path)));
}

/** What `path` names. A folder without safetensors may have one GGUF. Throws a RequestError, `model.folder`. */
export function modelPlace(path: string): ModelPlace {
  const stat = statOf(path);
  if (stat?.isFile() && isGguf(path)) return { folder: dirname(path), gguf: path };
  if (!stat?.isDirectory())
    throw new RequestError("model.folder", `${path}: ${stat ? "is no folder and no GGUF file" : "no such folder"}`, HINT);
  if (["model.safetensors", INDEX].some((name) => existsSync(join(path, name)))) return { folder: path, gguf: null };
  // a projector of images lies in a file of its own next to the model
  const found = readdirSync(path)
    .filter((name) => isGguf(name) && !isLater(name) && !/^mmproj/i.test(basename(name)))
    .sort();
  if (found.length < 2) return { folder: path, gguf: found.length === 0 ? null : join(path, found[0]!) };
  throw new RequestError(
    "model.folder",
    `${path} has ${counted(found.length, "model")}: ${found.slice(0, 3).join(", ")}${found.length > 3 ? " and more" : ""}`,
    "let model.path name the GGUF file",
  );
}

/** All files of a GGUF by their names: itself, and those that follow it where it is split. */
export function partsOf(gguf: string): readonly string[] {
  const [, , all] = SPLIT.exec(basename(gguf)) ?? [];
  if (all === undefined) return [gguf];
  const five = (n: number) => `${n}`.padStart(5, "0");
  return Array.from({ length: Number(all) }, (_, i) => gguf.replace(SPLIT, `-${five(i + 1)}-of-${all}.gguf`));
}
