// The safetensors of a Hugging Face folder, model.safetensors or shards with an index, as tensors by name. Where config.json
// says that weights are quantised, what holds their scales is no tensor of its own.

import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { readJsonObject } from "./json.ts";
import { INDEX } from "./modelpath.ts";
import { readBitsandbytes } from "./quantised/bitsandbytes.ts";
import { quantisationOf } from "./quantised/config.ts";
import { readFp8 } from "./quantised/fp8.ts";
import { readMxfp4 } from "./quantised/mxfp4.ts";
import type { RawTensor } from "./quantised/raw.ts";
import { openSafetensors, type SafetensorsFile } from "./safetensors.ts";
import { type ModelTensor, plainTensor } from "./tensor.ts";

/** Opens all files. Throws a RequestError, `model.weights`, `model.quantized` or `safetensors.*`. */
export function openSafetensorsModel(folder: string): Disposable & { readonly tensors: ReadonlyMap<string, ModelTensor> } {
  const config = join(folder, "config.json");
  const quantisation = existsSync(config) ? quantisationOf(readJsonObject(config, "model.config"), config) : null;
  const files = openFiles(folder);
  const dispose = () => {
    for (const file of new Set(files.values())) file[Symbol.dispose]();
  };
  try {
    const raw = new Map([...files].map(([name, file]) => [name, rawTensor(file, name)] as const));
    const plain = [...raw].map(
      ([name, { type, dtype, shape, read }]) => [name, plainTensor(type, dtype, shape, read)] as const,
    );
    const tensors = new Map<string, ModelTensor>(plain);
    if (quantisation?.method === "fp8") readFp8(tensors, raw, quantisation.block);
    if (quantisation?.method === "bitsandbytes") readBitsandbytes(tensors, raw);
    if (quantisation?.method === "mxfp4") readMxfp4(tensors, raw);
    return { tensors, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

const rawTensor = (file: SafetensorsFile, name: string): RawTensor => ({
  ...file.tensors.get(name)!,
  read: (into, from) => file.readInto(name, into, from),
});

/** Which file holds which tensor. */
function openFiles(folder: string): Map<string, SafetensorsFile> {
  const exists = (name: string) => statSync(join(folder, name), { throwIfNoEntry: false })?.isFile() ?? false;
  if (exists("model.safetensors")) {
    const file = openSafetensors(join(folder, "model.safetensors"));
    return new Map([...file.tensors.keys()].map((name) => [name, file]));
  }
  if (exists(INDEX)) return openShards(folder, join(folder, INDEX));
  const other = readdirSync(folder).filter((name) => /\.(bin|pt|pth)$/.test(name));
  throw new RequestError(
    "model.weights",
    `${folder} has neither model.safetensors nor ${INDEX}${other.length > 0 ? `, but ${other.slice(0, 3).join(", ")}` : ""}`,
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
