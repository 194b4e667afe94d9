// The weights of a base model: model.safetensors, or shards with an index. All that the spec needs is checked before any
// weight is read.

import { readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import type { DType } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { familyOf } from "../families/registry.ts";
import { tensorShapes } from "../families/tensors.ts";
import { readJsonObject } from "./json.ts";
import { openSafetensors, type SafetensorsFile, type TensorEntry } from "./safetensors.ts";

export type BaseModelFiles = Disposable & {
  /** Tensors of the files that the spec knows nothing of. */
  readonly unused: readonly string[];
  readonly tensor: (name: string) => TensorEntry;
  /** Fills `into` with the tensor's bytes from byte `from` of it on. */
  readonly read: (name: string, into: Uint8Array, from?: number) => void;
  /** What the files call it. */
  readonly stored: (name: string) => string;
};

const COMPUTED = ["f32", "f16", "bf16"] as const;
/** Whether weights may be of this type. */
export const isWeightType = (dtype: DType | null): dtype is (typeof COMPUTED)[number] =>
  (COMPUTED as readonly unknown[]).includes(dtype);

/** Opens the model's files. A RequestError "model.weights" lists what is missing or has another shape. */
export function openBaseModel(folder: string, spec: ModelSpec): BaseModelFiles {
  const files = openTensors(folder);
  try {
    const { embedding, head } = familyOf(spec).tensors;
    // A head alone is the embedding, too.
    const find = (name: string) => files.find(name) ?? (spec.tiedEmbeddings && name === embedding ? files.find(head) : null);
    checkAll(folder, spec, find);
    const used = new Set([...tensorShapes(spec).keys()].map((name) => find(name)!.actual));
    return {
      unused: files.names.filter((name) => !used.has(name)),
      tensor: (name) => find(name)!.entry,
      read: (name, into, from = 0) => {
        const { file, actual } = find(name)!;
        file.readInto(actual, into, from);
      },
      stored: (name) => find(name)!.actual,
      [Symbol.dispose]: () => files[Symbol.dispose](),
    };
  } catch (error) {
    files[Symbol.dispose]();
    throw error;
  }
}

export type FoundTensor = { readonly file: SafetensorsFile; readonly actual: string; readonly entry: TensorEntry };

/**
 * How files call what a text model calls `name`: some leave out the "model." in front, and of a model with other parts
 * versions of transformers differ.
 */
const callings = (name: string): string[] => {
  const bare = name.replace(/^model\./, "");
  return name === bare
    ? [name, `language_model.${bare}`]
    : [`model.language_model.${bare}`, `language_model.model.${bare}`, name, bare];
};

/** A model's files as they are: tensors by the names that a text model's have. */
export function openTensors(folder: string) {
  const files = openFiles(folder);
  const find = (name: string): FoundTensor | null => {
    for (const actual of callings(name)) {
      const file = files.get(actual);
      if (file) return { file, actual, entry: file.tensors.get(actual)! };
    }
    return null;
  };
  return {
    names: [...files.keys()],
    find,
    [Symbol.dispose]: () => {
      for (const file of new Set(files.values())) file[Symbol.dispose]();
    },
  };
}

/** Which file holds which tensor. */
function openFiles(folder: string): Map<string, SafetensorsFile> {
  const exists = (name: string) => statSync(join(folder, name), { throwIfNoEntry: false })?.isFile() ?? false;
  if (exists("model.safetensors")) {
    const file = openSafetensors(join(folder, "model.safetensors"));
    return new Map([...file.tensors.keys()].map((name) => [name, file]));
  }
  const index = "model.safetensors.index.json";
  if (exists(index)) return openShards(folder, join(folder, index));
  const other = readdirSync(folder).filter((name) => /\.(bin|pt|pth|gguf)$/.test(name));
  throw new RequestError(
    "model.weights",
    `${folder} has neither model.safetensors nor ${index}${other.length > 0 ? `, but ${other.slice(0, 3).join(", ")}` : ""}`,
    other.length > 0 ? "save the model as safetensors: model.save_pretrained(folder)" : "the download may be unfinished",
  );
}

function openShards(folder: string, path: string): Map<string, SafetensorsFile> {
  const map = readJsonObject(path, "model.weights")["weight_map"];
  if (typeof map !== "object" || map === null || Array.isArray(map))
    throw new RequestError("model.weights", `${path}: weight_map is ${JSON.stringify(map)}, expected an object`);
  const open = new Map<string, SafetensorsFile>();
  const files = new Map<string, SafetensorsFile>();
  try {
    for (const [name, shard] of Object.entries(map)) {
      if (typeof shard !== "string" || basename(shard) !== shard || shard === "" || shard.startsWith("."))
        throw new RequestError(
          "model.weights",
          `${path}: '${name}' lies in ${JSON.stringify(shard)}, which is no file of this folder`,
        );
      if (!open.has(shard)) open.set(shard, openSafetensors(join(folder, shard)));
      const file = open.get(shard)!;
      if (!file.tensors.has(name)) throw new RequestError("model.weights", `${path}: '${name}' is not in ${shard}`);
      files.set(name, file);
    }
  } catch (error) {
    for (const file of open.values()) file[Symbol.dispose]();
    throw error;
  }
  return files;
}

const SHOWN = 5;

function checkAll(folder: string, spec: ModelSpec, find: (name: string) => FoundTensor | null): void {
  const faults: string[] = [];
  for (const [name, shape] of tensorShapes(spec)) {
    const entry = find(name)?.entry;
    if (!entry) faults.push(`${name} is missing`);
    else if (`${entry.shape}` !== `${shape}`) faults.push(`${name} is [${entry.shape}], wanted [${shape}]`);
    else if (!isWeightType(entry.dtype)) faults.push(`${name} is ${entry.type}, wanted F32, F16 or BF16`);
  }
  if (faults.length === 0) return;
  const more = faults.length > SHOWN ? `; and ${faults.length - SHOWN} more` : "";
  throw new RequestError(
    "model.weights",
    `${folder}: the weights do not fit config.json: ${faults.slice(0, SHOWN).join("; ")}${more}`,
    "config.json and the safetensors files must be of one model",
  );
}
