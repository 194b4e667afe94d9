// An adapter and its base model become one Hugging Face model, for programs that know of no adapters. It is written next to its
// final place, read back and compared, and renamed: under its name there is a whole model or none.

import { readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { parse } from "smol-toml";
import { writeFileAtomic } from "../base/atomic.ts";
import { now } from "../base/clock.ts";
import { bytesOf } from "../base/dtype.ts";
import { MloraError, RequestError, textOf } from "../base/errors.ts";
import { hintOf, writeError } from "../base/faults.ts";
import { isQuantised, type Precision } from "../base/precision.ts";
import { sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { count, duration, formatBytes, shortPath } from "../base/units.ts";
import { answerEnds } from "../data/ends.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { type BaseModelFiles, openBaseModel } from "../files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../files/config.ts";
import { GENERATION, writeStopTokens } from "../files/generation.ts";
import { jsonLike } from "../files/json.ts";
import { filesOf, type Merge, type Shard, shardsOf, verifyMerged, writeIndex, writeShard } from "../files/merge.ts";
import { readModelFacts } from "../files/modelfacts.ts";
import { type ModelPlace, modelPlace } from "../files/modelpath.ts";
import { openPart, type Part } from "../files/part.ts";
import type { SavedAdapter } from "../files/peft.ts";
import { areTied } from "../files/pefttables.ts";
import { unquantised } from "../files/quantised/config.ts";
import { useAllCores } from "../files/stored.ts";
import { tokenizerFolder } from "../files/tokenizer.ts";
import { placesOfModel } from "../methods/placement.ts";
import { type Asking, adapterFor, baseOf, isFile } from "./adapters.ts";

export type ExportOptions = {
  /** The base model's folder; null: where the adapter's own config says. */
  readonly base: string | null;
  /** A folder that is new or empty. */
  readonly output: string;
  readonly dtype: (typeof EXPORT_DTYPES)[number];
  /** Bytes of a file of weights, at most. */
  readonly mostBytes: number;
  /** Called with a line about each thing that is done or worth knowing. */
  readonly print: (line: string) => void;
};

export const EXPORT_DTYPES = ["bf16", "fp32"] as const;
const DTYPES = { bf16: { ours: "bf16", theirs: "bfloat16" }, fp32: { ours: "f32", theirs: "float32" } } as const;
const ASK: Asking = { command: "export", flag: "--base" };

/** What `exportModel` has made; of an adapter with several ranks and scales, `rank` and `scale` are those of its config. */
export type ExportedModel = ReturnType<typeof exportModel>;

/** A merge that is ready to be written. */
export type OpenMerge = Disposable & {
  readonly adapterFolder: string;
  readonly baseFolder: string;
  /** The base's own spec; `merge` has that of the merged model. */
  readonly own: ModelSpec;
  readonly base: BaseModelFiles;
  readonly adapter: SavedAdapter;
  readonly spec: ModelSpec;
};

/** Opens the base model and reads the adapter in `folder`; prints what is worth knowing. Throws a RequestError. */
export function openMerge(folder: string, named: string | null, print: ExportOptions["print"]): OpenMerge {
  const adapterFolder = resolve(folder);
  const baseFolder = baseOf(adapterFolder, named, ASK);
  const { spec: own, notices } = readModelFacts(baseFolder, readModelSpec(baseFolder));
  if (own.experts?.isMxfp4)
    throw new RequestError(
      "export.base",
      `${baseFolder} has its experts in mxfp4, and a merged model would have them otherwise`,
      "merge into the model in bf16, or load model and adapter as they are",
    );
  const base = openBaseModel(baseFolder, own);
  try {
    const adapter = adapterFor(adapterFolder, baseFolder, own, ASK, true);
    const spec = adapter.changes && !areTied(own, adapter.changes) ? { ...own, tiedEmbeddings: false } : own;
    for (const notice of notices) print(`notice: ${notice}`);
    return { adapterFolder, baseFolder, own, base, adapter, spec, [Symbol.dispose]: () => base[Symbol.dispose]() };
  } catch (error) {
    base[Symbol.dispose]();
    throw error;
  }
}

/** Says where an adapter was trained on a base that was held in fewer bits than its files. */
export function noticeHeld({ adapterFolder, baseFolder }: OpenMerge, print: ExportOptions["print"]): void {
  const held = heldIn(adapterFolder);
  if (held === null) return;
  print(
    `notice: it was trained on ${shortPath(baseFolder)} in ${held}; it is merged into the weights as their files have them`,
  );
}

/**
 * Merges the adapter in `folder`. Throws a RequestError where that cannot be, a RunError where writing fails or
 * reads otherwise.
 */
export function exportModel(folder: string, { base: named, output: to, dtype, mostBytes, print }: ExportOptions) {
  const begun = now();
  const output = freeFolder(to, baseOf(resolve(folder), named, ASK));
  using opened = openMerge(folder, named, print);
  const { adapterFolder, baseFolder, own, base, adapter, spec } = opened;
  const merge: Merge = { spec, base, adapter, dtype: DTYPES[dtype].ours };
  const shards = shardsOf(merge, mostBytes);
  noticeHeld(opened, print);
  useAllCores();
  const place = placeOfTexts(baseFolder);
  const copied = copiedFrom(place);
  const part = partOf(output, [...copied, "config.json", GENERATION, ...filesOf(shards)]);
  try {
    copyBeside(place.folder, part.path, copied);
    writeConfig(baseFolder, part.path, spec, own.tiedEmbeddings, DTYPES[dtype].theirs);
    addStops(baseFolder, part.path, print);
    writeWeights(part.path, shards, merge, print);
    const started = now();
    verifyMerged(part.path, shards, merge);
    print(`verified: all tensors read as they were computed, ${duration((now() - started) / 1000)}`);
    part.finish();
  } catch (error) {
    part.discard();
    throw error instanceof MloraError ? error : writeError(output, error);
  }
  const facts = factsOf(merge, shards, (now() - begun) / 1000);
  return { adapter: adapterFolder, base: baseFolder, output, dtype, ...facts };
}

function factsOf({ spec, adapter }: Merge, shards: readonly Shard[], seconds: number) {
  const tensors = shards.flatMap((shard) => shard.tensors);
  const bytes = shards.reduce((all, shard) => all + shard.bytes, 0);
  return {
    rank: adapter.rank,
    scale: adapter.scale,
    targets: adapter.targets,
    ...(adapter.places ? { places: placesOfModel(spec, adapter.places) } : {}),
    tensors: tensors.length,
    merged_tensors: tensors.filter(({ site, table }) => site !== null || table !== null).length,
    parameters: sum(tensors.map((tensor) => tensor.bytes / bytesOf(tensor.dtype))),
    bytes,
    files: shards.map(({ file }) => file),
    seconds,
  };
}

/**
 * How the base was quantised where the adapter was trained, as far as the recipe in the run's folder tells;
 * null where it was not.
 */
function heldIn(adapterFolder: string): string | null {
  try {
    const { model } = parse(readFileSync(join(adapterFolder, "..", "recipe.toml"), "utf8")) as {
      model?: { precision?: unknown };
    };
    return isQuantised(model?.precision as Precision) ? `${model?.precision}` : null;
  } catch {
    return null; // an adapter from elsewhere
  }
}

/** Where the model may go: a folder that is new or empty. */
function freeFolder(path: string, base: string): string {
  const wrong = (what: string) => new RequestError("export.output", what, "give --output a folder that is new or empty");
  const whole = resolve(path);
  try {
    const stat = statSync(whole, { throwIfNoEntry: false });
    if (!stat) return whole;
    if (!stat.isDirectory()) throw wrong(`${whole} is no folder`);
    const real = realpathSync(whole);
    if (real === base) throw wrong(`${whole} is the base model's own folder`);
    const found = readdirSync(real);
    if (found.length > 0) throw wrong(`${whole} is not empty: it holds ${found.slice(0, 3).join(", ")}`);
    return real;
  } catch (error) {
    throw error instanceof RequestError ? error : wrong(`cannot use ${whole} for the output: ${textOf(error)}`);
  }
}

/** The folder next to `output` that becomes it. */
function partOf(output: string, names: readonly string[]): Part {
  try {
    return openPart(output, names);
  } catch (error) {
    throw new RequestError(
      "export.output",
      `cannot write next to ${output}: ${textOf(error)}`,
      hintOf(error) ?? "choose a folder that you may write to",
      { cause: error },
    );
  }
}

/** What is written anew, and weights in whatever form. */
const NOT_COPIED = /^\.|^(config\.json|README\.md)$|\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx)(\.index\.json)?$/i;

/** The tokenizer of a GGUF may be in the cache folder; without one, the notice comes when the ends of answers are looked up. */
function placeOfTexts(base: string): ModelPlace {
  const place = modelPlace(base);
  if (place.gguf === null) return place;
  try {
    return { ...place, folder: tokenizerFolder(base) };
  } catch (error) {
    if (error instanceof RequestError) return place;
    throw error;
  }
}

/** What is copied from next to a GGUF, which may lie among anything. */
const BESIDE_GGUF =
  /^(tokenizer.*\.json|tokenizer\.model|.*tokens.*\.json|vocab\..*|merges\.txt|chat_template.*|generation_config\.json|licen[cs]e.*)$/i;

/** Tokenizer, templates, settings of generation, licence. */
const copiedFrom = ({ folder, gguf }: ModelPlace): string[] =>
  readdirSync(folder)
    .sort()
    .filter((name) => !NOT_COPIED.test(name) && (gguf === null || BESIDE_GGUF.test(name)) && isFile(join(folder, name)));

function copyBeside(base: string, part: string, names: readonly string[]): void {
  for (const name of names) {
    const from = join(base, name);
    let bytes: Uint8Array;
    try {
      bytes = readFileSync(from);
    } catch (error) {
      throw new RequestError("export.base", `cannot read ${from}: ${textOf(error)}`, "the merged model needs this file, too");
    }
    writeFileAtomic(join(part, name), bytes);
  }
}

/**
 * The base's config.json with the type that is stored, which transformers 5 calls dtype, and the head as it is written. Nothing
 * in the merged model is quantised.
 */
function writeConfig(base: string, part: string, { tower, tiedEmbeddings }: ModelSpec, wasTied: boolean, stored: string): void {
  const { file, config: found } = readModelConfig(base);
  const config = unquantised(found);
  const keys = ["torch_dtype", "dtype"].filter((key) => Object.hasOwn(config, key));
  const types = Object.fromEntries((keys.length > 0 ? keys : ["torch_dtype"]).map((key) => [key, stored]));
  // With other parts the default is not known.
  const says = wasTied || tower !== "model" || config["tie_word_embeddings"] === true;
  const head = says && !tiedEmbeddings ? { tie_word_embeddings: false } : {};
  const like = file.endsWith(".json") ? readFileSync(file, "utf8") : "{}";
  writeFileAtomic(join(part, "config.json"), jsonLike({ ...config, ...head, ...types }, like));
}

/** A merged model stops where its adapter learned to end answers. */
function addStops(base: string, part: string, print: ExportOptions["print"]): void {
  let ends: readonly number[];
  let names = (id: number) => `${id}`;
  try {
    const tokenizer = loadTokenizer(tokenizerFolder(base));
    ends = answerEnds(tokenizer);
    names = (id) => `${tokenizer.decode([id])} (${id})`;
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    print(`notice: ${error.message}; so the merged model stops only at the tokens at which the base model does`);
    return;
  }
  const added = writeStopTokens(base, part, ends);
  if (added.length > 0) print(`generation_config.json: answers end with ${added.map(names).join(", ")}; added to eos_token_id`);
}

function writeWeights(part: string, shards: readonly Shard[], merge: Merge, print: ExportOptions["print"]): void {
  for (const [i, shard] of shards.entries()) {
    const started = now();
    writeShard(part, shard, merge);
    const size = `${count(shard.tensors.length)} ${shard.tensors.length === 1 ? "tensor" : "tensors"}, ${formatBytes(shard.bytes)}`;
    print(`wrote file ${i + 1} of ${shards.length}: ${size}, ${duration((now() - started) / 1000)}`);
  }
  writeIndex(part, shards);
}
