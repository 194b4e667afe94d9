// `mlora export`: an adapter and its base model become one Hugging Face model, for programs that know of no adapters. It is
// written next to its final place, read back and compared, and renamed: under its name there is a whole model or none.

import { readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { parse } from "smol-toml";
import { now } from "../base/clock.ts";
import { bytesOf } from "../base/dtype.ts";
import { MloraError, RequestError, textOf } from "../base/errors.ts";
import { hintOf, writeError } from "../base/faults.ts";
import { isQuantised, type Precision } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import { jsonText, writeStderr, writeStdout } from "../base/terminal.ts";
import { count, duration, formatBytes } from "../base/units.ts";
import { answerEnds } from "../data/ends.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { writeFileAtomic } from "../files/atomic.ts";
import { openBaseModel } from "../files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../files/config.ts";
import { GENERATION, writeStopTokens } from "../files/generation.ts";
import { filesOf, type Merge, type Shard, shardsOf, verifyMerged, writeIndex, writeShard } from "../files/merge.ts";
import { readModelFacts } from "../files/modelfacts.ts";
import { type ModelPlace, modelPlace } from "../files/modelpath.ts";
import { openPart, type Part } from "../files/part.ts";
import type { SavedAdapter } from "../files/peft.ts";
import { useAllCores } from "../files/stored.ts";
import { tokenizerFolder } from "../files/tokenizer.ts";
import { type Asking, adapterFor, baseOf, isFile } from "../session/adapters.ts";
import { shortPath } from "../session/prepare.ts";
import { oneOf } from "./flags.ts";

export type ExportFlags = {
  readonly base?: unknown;
  readonly output?: unknown;
  readonly dtype?: unknown;
  readonly shard?: unknown;
  readonly json?: boolean;
};

const DTYPES = { bf16: { ours: "bf16", theirs: "bfloat16" }, fp32: { ours: "f32", theirs: "float32" } } as const;
const SHARD = "5GB"; // as transformers divides a model
const ASK: Asking = { command: "export", flag: "--base" };

/**
 * Merges the adapter in `folder`. Throws a RequestError where that cannot be, a RunError where writing fails or
 * reads otherwise.
 */
export function exportModel(folder: string, { base: named, output: to, dtype: type, shard, json = false }: ExportFlags): void {
  const begun = now();
  if (to === undefined)
    throw new RequestError("cli.flag", "--output is missing", "say where the merged model goes: --output FOLDER");
  const dtype = oneOf("dtype", `${type ?? "bf16"}`, ["bf16", "fp32"]);
  const mostBytes = bytesIn(`${shard ?? SHARD}`);
  const adapterFolder = resolve(folder);
  const baseFolder = baseOf(adapterFolder, named === undefined ? null : `${named}`, ASK);
  const output = freeFolder(`${to}`, baseFolder);
  const { spec, notices } = readModelFacts(baseFolder, readModelSpec(baseFolder));
  const adapter = adapterFor(adapterFolder, baseFolder, spec, ASK);
  using base = openBaseModel(baseFolder, spec);
  useAllCores();
  const merge: Merge = { spec, base, adapter, dtype: DTYPES[dtype].ours };
  const shards = shardsOf(merge, mostBytes);
  for (const notice of notices) print(`notice: ${notice}`);
  const held = heldIn(adapterFolder);
  if (held !== null)
    print(
      `notice: it was trained on ${shortPath(baseFolder)} in ${held}; it is merged into the weights as their files have them`,
    );
  const place = modelPlace(baseFolder);
  const copied = copiedFrom(place);
  const part = partOf(output, [...copied, "config.json", GENERATION, ...filesOf(shards)]);
  try {
    copyBeside(place.folder, part.path, copied);
    writeConfig(baseFolder, part.path, spec, DTYPES[dtype].theirs);
    addStops(baseFolder, part.path);
    writeWeights(part.path, shards, merge);
    const started = now();
    verifyMerged(part.path, shards, merge);
    print(`verified: all tensors read as they were computed, ${duration((now() - started) / 1000)}`);
    part.finish();
  } catch (error) {
    part.discard();
    throw error instanceof MloraError ? error : writeError(output, error);
  }
  const facts = factsOf(merge, shards, (now() - begun) / 1000);
  const text = json
    ? jsonText({ adapter: adapterFolder, base: baseFolder, output, dtype, ...facts }, 2)
    : `merged ${count(facts.merged_tensors)} of ${count(facts.tensors)} tensors (${placesText(adapter)}) into ` +
      `${shortPath(output)}: ${count(facts.parameters)} parameters in ${dtype}, ${formatBytes(facts.bytes)}, ` +
      `${shards.length === 1 ? "1 file" : `${shards.length} files`}`;
  writeStdout(`${text}\n`);
}

const print = (line: string): void => {
  writeStderr(`${line}\n`);
};

/** "rank 16, scale 2"; of an adapter with several of them, the least and the largest. */
function placesText({ rank, scale, places }: SavedAdapter): string {
  const span = (table: readonly (readonly number[])[], of: number) => {
    const values = places ? table.flat().filter((_, i) => places.ranks.flat()[i]! > 0) : [of];
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return least === most ? `${most}` : `${least} to ${most}`;
  };
  return `rank ${span(places?.ranks ?? [], rank)}, scale ${span(places?.scales ?? [], scale)}`;
}

function factsOf({ adapter, dtype }: Merge, shards: readonly Shard[], seconds: number) {
  const tensors = shards.flatMap((shard) => shard.tensors);
  const bytes = shards.reduce((all, shard) => all + shard.bytes, 0);
  return {
    rank: adapter.rank,
    scale: adapter.scale,
    targets: adapter.targets,
    ...(adapter.places ? { places: adapter.places } : {}),
    tensors: tensors.length,
    merged_tensors: tensors.filter(({ site }) => site !== null).length,
    parameters: bytes / bytesOf(dtype),
    bytes,
    files: shards.map(({ file }) => file),
    seconds,
  };
}

const UNITS: Readonly<Record<string, number>> = {
  ...{ B: 1, KB: 1e3, MB: 1e6, GB: 1e9 },
  ...{ KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 },
};

/** "5GB" */
function bytesIn(text: string): number {
  const [, number, unit = "B"] = /^(\d+(?:\.\d+)?)\s*([kmg]?i?b)?$/i.exec(text) ?? [];
  const bytes = number === undefined ? 0 : Math.floor(Number(number) * (UNITS[unit.toUpperCase()] ?? 0));
  if (bytes < 1) throw new RequestError("cli.flag", `--shard is '${text}'`, "give it a size: --shard 5GB, --shard 500MB");
  return bytes;
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

/** What is copied from next to a GGUF, which may lie among anything. */
const COPIED_TEXTS =
  /^(tokenizer.*\.json|tokenizer\.model|.*tokens.*\.json|vocab\..*|merges\.txt|chat_template.*|generation_config\.json|licen[cs]e.*)$/i;

/** Tokenizer, templates, settings of generation, licence. */
const copiedFrom = ({ folder, gguf }: ModelPlace): string[] =>
  readdirSync(folder)
    .sort()
    .filter((name) => !NOT_COPIED.test(name) && (gguf === null || COPIED_TEXTS.test(name)) && isFile(join(folder, name)));

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
function writeConfig(base: string, part: string, { tiedEmbeddings }: ModelSpec, stored: string): void {
  const { quantization_config: _, ...config } = readModelConfig(base).config;
  const keys = ["torch_dtype", "dtype"].filter((key) => Object.hasOwn(config, key));
  const types = Object.fromEntries((keys.length > 0 ? keys : ["torch_dtype"]).map((key) => [key, stored]));
  const head = config["tie_word_embeddings"] === true && !tiedEmbeddings ? { tie_word_embeddings: false } : {};
  writeFileAtomic(join(part, "config.json"), `${JSON.stringify({ ...config, ...head, ...types }, null, 2)}\n`);
}

/** A merged model stops where its adapter learned to end answers. */
function addStops(base: string, part: string): void {
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

function writeWeights(part: string, shards: readonly Shard[], merge: Merge): void {
  for (const [i, shard] of shards.entries()) {
    const started = now();
    writeShard(part, shard, merge);
    const size = `${count(shard.tensors.length)} ${shard.tensors.length === 1 ? "tensor" : "tensors"}, ${formatBytes(shard.bytes)}`;
    print(`wrote file ${i + 1} of ${shards.length}: ${size}, ${duration((now() - started) / 1000)}`);
  }
  writeIndex(part, shards);
}
