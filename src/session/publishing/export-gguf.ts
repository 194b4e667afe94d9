// An adapter becomes a GGUF for llama.cpp and what is built on it: merged into its base model, or alone, to be added to the
// base model there.

import { existsSync, statSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { now } from "../../base/clock.ts";
import { MloraError, RequestError, textOf } from "../../base/errors.ts";
import { writeError } from "../../base/faults.ts";
import { duration } from "../../base/units.ts";
import { ggufVocabulary } from "../../data/gguf-vocabulary.ts";
import { type GgufKeys, type GgufModel, ggufModel, ggufName } from "../../families/gguf.ts";
import { familyOf } from "../../families/registry.ts";
import { readModelConfig } from "../../files/config.ts";
import { writeGguf } from "../../files/gguf/file.ts";
import { openGguf } from "../../files/gguf/header.ts";
import { elementsOf, loraTensors, mergedTensors } from "../../files/gguf/merged.ts";
import { GGUF_TYPES, type GgufType } from "../../files/gguf/types.ts";
import type { JsonObject } from "../../files/json.ts";
import { modelPlace } from "../../files/modelpath.ts";
import { useAllCores } from "../../files/stored.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import { placesOfModel } from "../../methods/placement.ts";
import { isProduct } from "../../methods/registry.ts";
import { type ExportOptions, noticeHeld, type OpenMerge, openMerge } from "./export-model.ts";

/** What a GGUF has: the merged model mostly in one type, or the adapter alone. */
export const GGUF_CONTENTS = [...(Object.keys(GGUF_TYPES) as GgufType[]), "adapter"] as const;
export type GgufContents = (typeof GGUF_CONTENTS)[number];

export type GgufOptions = Pick<ExportOptions, "base" | "print"> & {
  /** A file that is not there yet. */
  readonly output: string;
  readonly contents: GgufContents;
};

export type ExportedGguf = ReturnType<typeof exportGguf>;

/**
 * Writes the adapter in `folder` as a GGUF. Throws a RequestError for what llama.cpp does not compute, a RunError where writing
 * fails or reads otherwise.
 */
export function exportGguf(folder: string, { base: named, output: to, contents, print }: GgufOptions) {
  const begun = now();
  const output = freeFile(to);
  using opened = openMerge(folder, named, print);
  const { adapterFolder, baseFolder, adapter, own } = opened;
  const { config } = readModelConfig(baseFolder);
  const isMerged = contents !== "adapter";
  const spec = isMerged ? opened.spec : own;
  const text = (config["text_config"] ?? config) as JsonObject;
  const model = ggufModel(familyOf(spec).gguf, spec, text);
  for (const notice of model.notices) print(`notice: ${notice}`);
  if (isMerged) noticeHeld(opened, print);
  const content = isMerged ? modelContent(opened, model, contents, print) : loraContent(opened, model);
  useAllCores();
  let bytes: number;
  const started = now();
  try {
    bytes = writeGguf(output, content);
  } catch (error) {
    throw error instanceof MloraError ? error : writeError(output, error);
  }
  print(`verified: all tensors read as they were computed, ${duration((now() - started) / 1000)} with writing`);
  const { rank, scale, targets, places } = adapter;
  return {
    ...{ adapter: adapterFolder, base: baseFolder, output, gguf: contents, rank, scale, targets },
    ...(places ? { places: placesOfModel(spec, places) } : {}),
    tensors: content.tensors.length,
    parameters: elementsOf(content.tensors),
    ...{ bytes, files: [basename(output)], seconds: (now() - begun) / 1000 },
  };
}

/** The path of a file that is not there yet. */
function freeFile(path: string): string {
  const wrong = (what: string) =>
    new RequestError("export.output", what, "name a file that is not there yet: --output model.gguf");
  const whole = resolve(path);
  try {
    if (existsSync(whole)) throw wrong(`${whole} is there already`);
    if (!whole.endsWith(".gguf")) throw wrong(`${whole} does not end with .gguf, by which programs know the format`);
    const folder = statSync(dirname(whole), { throwIfNoEntry: false });
    if (folder && !folder.isDirectory()) throw wrong(`${dirname(whole)} is no folder`);
    return whole;
  } catch (error) {
    throw error instanceof RequestError ? error : wrong(`cannot use ${whole} for the output: ${textOf(error)}`);
  }
}

const QUANTISATION_VERSION = 2;

function modelContent(opened: OpenMerge, model: GgufModel, type: GgufType, print: GgufOptions["print"]) {
  const { spec, base, adapter } = opened;
  const { gguf } = modelPlace(opened.baseFolder);
  const vocabulary = gguf === null ? ggufVocabulary(tokenizerFolder(opened.baseFolder), spec.vocab) : [];
  const keys: GgufKeys = [
    ["general.architecture", model.architecture],
    ["general.type", "model"],
    ["general.name", nameOf(opened, model, vocabulary)],
    ["general.file_type", { u32: GGUF_TYPES[type] }],
    ["general.quantization_version", { u32: QUANTISATION_VERSION }],
    ...model.metadata,
    ...vocabulary,
  ];
  if (spec.tower !== "model") print("notice: only the text part of the model is written");
  const merge = { spec, base, adapter, dtype: "f32" } as const;
  return { keys, raw: gguf === null ? [] : tokenizerKeys(gguf), tensors: mergedTensors(merge, model, type) };
}

function nameOf({ baseFolder, adapterFolder }: OpenMerge, model: GgufModel, vocabulary: GgufKeys): string {
  const name = `${basename(baseFolder)} ${basename(adapterFolder)}`;
  const listed = vocabulary.find(([key]) => key === "tokenizer.ggml.tokens")?.[1];
  return typeof listed === "object" && "strings" in listed ? ggufName(model, name, listed.strings) : name;
}

/** The tokenizer of a base that is a GGUF, as it is there. */
function tokenizerKeys(path: string): readonly Uint8Array[] {
  using file = openGguf(path);
  const places = [...file.places].filter(([key]) => key.startsWith("tokenizer."));
  return places.map(([, [from, to]]) => {
    const bytes = new Uint8Array(new ArrayBuffer(to - from));
    file.read(bytes, from);
    return bytes;
  });
}

function loraContent(opened: OpenMerge, model: GgufModel) {
  const { adapter, own, adapterFolder } = opened;
  const refused = (what: string) =>
    new RequestError("export.gguf", `${adapterFolder} ${what}`, "merge it into its base model: --gguf q8_0, or another type");
  if (!isProduct(adapter.method)) throw refused(`is a ${adapter.method}, and llama.cpp adds products of two matrices alone`);
  if (adapter.changes) throw refused("changes the embedding or the output head, which is not written for llama.cpp");
  const { alpha, tensors } = loraTensors(own, adapter, model);
  const keys: GgufKeys = [
    ["general.architecture", model.architecture],
    ["general.type", "adapter"],
    ["general.name", basename(adapterFolder)],
    ["adapter.type", "lora"],
    ["adapter.lora.alpha", { f32: alpha }],
  ];
  return { keys, tensors };
}
