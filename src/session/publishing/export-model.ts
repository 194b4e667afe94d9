// An adapter and its base model become one Hugging Face model, for programs that know of no adapters. It is written next to its
// final place, read back and compared, and renamed: under its name there is a whole model or none.

import { mkdirSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { parse } from "smol-toml";
import { writeFileAtomic } from "../../base/atomic.ts";
import { listed } from "../../base/check.ts";
import { now } from "../../base/clock.ts";
import { bytesOf } from "../../base/dtype.ts";
import { MloraError, RequestError, textOf } from "../../base/errors.ts";
import { hintOf, writeError } from "../../base/faults.ts";
import { isQuantised, type Precision } from "../../base/precision.ts";
import { sum } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { count, counted, duration, formatBytes, shortPath } from "../../base/units.ts";
import { answerEnds } from "../../data/ends.ts";
import { loadTokenizer } from "../../data/tokenizer.ts";
import { type BaseModelFiles, openBaseModel } from "../../files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../../files/config.ts";
import { GENERATION, writeStopTokens } from "../../files/generation.ts";
import { jsonLike } from "../../files/json.ts";
import {
  filesOf,
  type Merge,
  type Shard,
  shardsOf,
  sharedBase,
  verifyAll,
  writeIndex,
  writeShards,
} from "../../files/merge.ts";
import { readModelFacts } from "../../files/modelfacts.ts";
import { type ModelPlace, modelPlace } from "../../files/modelpath.ts";
import { openPart, type Part } from "../../files/part.ts";
import type { SavedAdapter } from "../../files/peft.ts";
import { areTied } from "../../files/pefttables.ts";
import { unquantised } from "../../files/quantised/config.ts";
import { readRecord } from "../../files/record.ts";
import { requireRoom } from "../../files/room.ts";
import { useAllCores } from "../../files/stored.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import { placesOfModel } from "../../methods/placement.ts";
import { type Asking, adapterFor, baseOf, isFile, isFolder } from "../preparation/adapters.ts";

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
export function exportModel(folder: string, options: ExportOptions) {
  const output = freeFolder(options.output, baseOf(resolve(folder), options.base, ASK));
  using opened = openMerge(folder, options.base, options.print);
  return mergeAll([{ opened, output }], options)[0]!;
}

/**
 * Merges several adapters of one base model, each into a folder of its own name in `output`; the base is read once for all of
 * them. Throws as `exportModel` does; then none of them is there.
 */
export function exportModels(folders: readonly string[], options: ExportOptions) {
  const bases = folders.map((folder) => baseOf(resolve(folder), options.base, ASK));
  const other = bases.findIndex((base) => base !== bases[0]);
  if (other >= 0)
    throw new RequestError(
      "export.base",
      `${folders[0]} is of ${bases[0]}, and ${folders[other]} of ${bases[other]}`,
      "give --base the one that all of them are of",
    );
  const whole = freeFolder(options.output, bases[0]!);
  const told = new Set<string>(); // what is worth knowing of the base, once
  const print = (line: string) => {
    if (!told.has(line)) options.print(line);
    told.add(line);
  };
  const targets: { opened: OpenMerge; output: string }[] = [];
  try {
    for (const folder of folders)
      targets.push({ opened: openMerge(folder, options.base, print), output: join(whole, basename(resolve(folder))) });
    return mergeAll(targets, { ...options, print });
  } finally {
    for (const { opened } of targets) opened[Symbol.dispose]();
  }
}

/** The folders of the adapters of a run that have ended and were saved; says which were not. Throws a RequestError. */
export function adaptersOfRun(folder: string, print: ExportOptions["print"]): readonly string[] {
  const run = resolve(folder);
  const ended = [...readRecord(run).values()];
  const saved = ended.filter(({ status, name }) => status !== "failed" && isFile(join(run, name, "adapter_config.json")));
  const left = ended.filter((one) => !saved.includes(one)).map(({ name, status }) => `${name} (${status})`);
  if (saved.length === 0)
    throw new RequestError(
      "export.run",
      `${run} has no adapter that has ended`,
      "name the output folder of a run, or one adapter",
    );
  if (left.length > 0) print(`notice: not exported, as there is nothing of them: ${left.join(", ")}`);
  return saved.map(({ name }) => join(run, name));
}

type Target = { readonly opened: OpenMerge; readonly output: string };

function mergeAll(targets: readonly Target[], { dtype, mostBytes, print }: ExportOptions) {
  const begun = now();
  const { baseFolder, own } = targets[0]!.opened;
  const base = sharedBase(targets[0]!.opened.base);
  const models = targets.map(({ opened, output }) => {
    const { spec, adapter } = opened;
    const merge: Merge = { spec, base, adapter, dtype: DTYPES[dtype].ours };
    noticeHeld(opened, print);
    return { opened, output, merge, shards: shardsOf(merge, mostBytes) };
  });
  noticeRounded(models, baseFolder, print);
  const bytes = sum(models.flatMap(({ shards }) => shards.map((shard) => shard.bytes)));
  requireRoom(models[0]!.output, bytes);
  useAllCores();
  const place = placeOfTexts(baseFolder);
  const copied = copiedFrom(place);
  const parts: Part[] = [];
  let at = models[0]!.output;
  try {
    for (const { output, shards, merge } of models) {
      at = output;
      const part = partOf(output, [...copied, "config.json", GENERATION, ...filesOf(shards)]);
      parts.push(part);
      copyBeside(place.folder, part.path, copied);
      writeConfig(baseFolder, part.path, merge.spec, own.tiedEmbeddings, DTYPES[dtype].theirs);
      addStops(baseFolder, part.path, print);
    }
    const written = models.map((model, i) => ({ ...model, folder: parts[i]!.path }));
    // an adapter may give its model a head of its own, and with it other files
    for (const same of Map.groupBy(written, ({ shards }) => layoutOf(shards)).values()) {
      writeWeights(same, print);
      const started = now();
      verifyAll(same);
      print(`verified: all tensors read as they were computed, ${duration((now() - started) / 1000)}`);
    }
    for (const part of parts) part.finish();
  } catch (error) {
    for (const part of parts) part.discard();
    throw error instanceof MloraError ? error : writeError(at, error);
  }
  return models.map(({ opened: { adapterFolder }, output, merge, shards }) => {
    const facts = factsOf(merge, shards, (now() - begun) / 1000);
    return { adapter: adapterFolder, base: baseFolder, output, dtype, ...facts };
  });
}

/** Says where the merged model holds fewer digits of a weight than the base's files do. */
function noticeRounded(
  models: readonly { readonly merge: Merge; readonly shards: readonly Shard[] }[],
  baseFolder: string,
  print: ExportOptions["print"],
): void {
  const [{ merge, shards }] = models as [(typeof models)[number]];
  const tensors = shards.flatMap((shard) => shard.tensors).filter(({ dtype }) => dtype === "bf16");
  const wider = tensors.map(({ from }) => merge.base.tensor(from).dtype).filter((dtype) => dtype === "f32" || dtype === "f16");
  if (wider.length === 0) return;
  print(
    `notice: bf16 rounds ${count(wider.length)} of ${counted(tensors.length, "tensor")}, which are in ${listed([...new Set(wider)].sort(), "and")} ` +
      `in ${shortPath(baseFolder)}; --dtype fp32 keeps their digits`,
  );
}

const layoutOf = (shards: readonly Shard[]): string =>
  JSON.stringify(shards.map(({ file, tensors }) => [file, tensors.map(({ stored, shape }) => [stored, shape])]));

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
  if (/\.gguf$/i.test(whole))
    throw new RequestError(
      "export.output",
      `${whole} would be a folder`,
      "give --gguf f16, q8_0, ... for a GGUF, or name a folder",
    );
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

/** Where transformers has chat templates by name, as that of chats with tools. */
const TEMPLATES = "additional_chat_templates";

/** Tokenizer, templates, settings of generation, licence. */
function copiedFrom({ folder, gguf }: ModelPlace): string[] {
  const isCopied = (name: string) => !NOT_COPIED.test(name) && (gguf === null || BESIDE_GGUF.test(name));
  const templates = isFolder(join(folder, TEMPLATES)) ? readdirSync(join(folder, TEMPLATES)) : [];
  const named = templates.filter((name) => name.endsWith(".jinja")).map((name) => `${TEMPLATES}/${name}`);
  return [...readdirSync(folder).filter(isCopied), ...named].sort().filter((name) => isFile(join(folder, name)));
}

function copyBeside(base: string, part: string, names: readonly string[]): void {
  for (const name of names) {
    const from = join(base, name);
    let bytes: Uint8Array;
    try {
      bytes = readFileSync(from);
    } catch (error) {
      throw new RequestError("export.base", `cannot read ${from}: ${textOf(error)}`, "the merged model needs this file, too");
    }
    mkdirSync(dirname(join(part, name)), { recursive: true });
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

type Written = { readonly folder: string; readonly merge: Merge; readonly shards: readonly Shard[] };

/** The files of models of the same tensors. */
function writeWeights(models: readonly Written[], print: ExportOptions["print"]): void {
  const [{ shards }] = models as readonly [Written];
  for (const [i, shard] of shards.entries()) {
    const started = now();
    writeShards(models.map(({ folder, merge, shards }) => ({ folder, merge, shard: shards[i]! })));
    const size = `${counted(shard.tensors.length, "tensor")}, ${formatBytes(shard.bytes)}`;
    const of = models.length === 1 ? "" : ` of each of ${counted(models.length, "model")}`;
    print(`wrote file ${i + 1} of ${shards.length}${of}: ${size}, ${duration((now() - started) / 1000)}`);
  }
  for (const { folder, shards } of models) writeIndex(folder, shards);
}
