// A request to generate: base model, adapters, prompts. All that can be wrong is found here, before a weight is read.

import { basename, join, resolve } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import type { Precision } from "../../base/precision.ts";
import { isHub } from "../../base/source-name.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { type FilesOf, filesNamed } from "../../data/data-file.ts";
import { loadDataset } from "../../data/dataset.ts";
import { answerEnds } from "../../data/ends.ts";
import { checkIds } from "../../data/fit-row.ts";
import { RowFault } from "../../data/jsonl.ts";
import { type Prompt, promptOf, type Reading, readPrompts, splitAnswer } from "../../data/prompts.ts";
import { formatOptionsOf, tokenizerOf } from "../../data/row-reader.ts";
import { loadTokenizer, type Tokenizer } from "../../data/tokenizer.ts";
import { readModelSpec } from "../../files/config.ts";
import { readModelFacts } from "../../files/modelfacts.ts";
import { isModelPath } from "../../files/modelpath.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import { tensorsIn } from "../../methods/layout.ts";
import { loadRecipe } from "../../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { openFiles, openModel } from "../../sources/open.ts";
import { type Asking, adapterFor, baseOf, frozenOf, isFile } from "../preparation/adapters.ts";
import { withLocalModel } from "../preparation/prepare.ts";
import type { LoadedAdapter } from "./open.ts";

export type PromptOptions = {
  /** A base model's folder, or a recipe (*.toml); left out: the base model that the adapters name. */
  readonly base?: string | undefined;
  /** Folders of adapters, or their names in the recipe; none: all that the recipe's run has saved, or the base model alone. */
  readonly adapters?: readonly string[];
  /** A text, or a JSONL file of prompts; without both, the recipe's evaluation rows. */
  readonly prompt?: string | undefined;
  readonly prompts?: string | undefined;
  /** The system message, instead of the recipe's. */
  readonly system?: string | undefined;
  /** Without the model's chat template. */
  readonly isRaw?: boolean;
  /** Instead of the recipe's. */
  readonly device?: Device | undefined;
  readonly precision?: Precision | undefined;
};
type Device = Recipe["run"]["device"];

/** Names the base model alone. */
const BASE = "base";
const ASK: Asking = { command: "generate", flag: "mlora generate" };

/** An adapter and its folder; null for the base model alone. */
type Named = { readonly name: string; readonly folder: string | null; readonly recipe: AdapterRecipe | null };
type NamedAdapter = LoadedAdapter & { readonly name: string };
/** A prompt for one of the adapters: its slot, or -1. */
export type Question = Prompt & { readonly adapter: number; readonly name: string; readonly place: string };

export type GenerateRequest = Awaited<ReturnType<typeof readGenerateRequest>>;

/**
 * Reads the recipe, adapters and prompts. `exact`: what linear weights of the base are held in exactly. `notices` about the
 * base are for people; `ends` are the tokens that end the answers that the adapters are trained on. Throws RequestErrors.
 */
export async function readGenerateRequest(options: PromptOptions) {
  if (options.prompt !== undefined && options.prompts !== undefined)
    throw new RequestError("cli.flag", "--prompt and --prompts were both given", "give one of them");
  const written = options.base?.endsWith(".toml") ? loadRecipe(options.base) : null;
  const notice = (text: string) => log(0, () => `notice: ${text}`);
  const recipe = written && (await withLocalModel(written, {}, notice));
  const named = namedBy(options.adapters ?? [], recipe);
  const given = options.base !== undefined && isHub(options.base) ? await openModel(options.base, { notice }) : options.base;
  const base = recipe?.model.path ?? baseFolder(given, named);
  const { spec, exact, notices } = readModelFacts(base, readModelSpec(base));
  const tokenizer = loadTokenizer(tokenizerFolder(base));
  const adapters = named.flatMap(({ name, folder }): NamedAdapter[] => {
    if (folder === null) return [];
    const saved = adapterFor(folder, base, spec, ASK);
    const adapter = frozenOf(saved);
    const at = tensorsIn(spec, { from: 0, to: spec.layers }, adapter);
    const factors = at.map((at) => ({ ...at, values: saved.tensor(at.layer, at.linear, at.factor) }));
    return [{ name, ...adapter, factors }];
  });
  const files = await openFiles(fileNames(options, named), { notice });
  const questions = questionsOf(options, named, adapters, tokenizer, spec, files);
  const device = options.device ?? recipe?.run.device ?? "auto";
  const precision = options.precision ?? recipe?.model.precision ?? "auto";
  const tokenizers = [tokenizer, ...named.flatMap(({ recipe: of }) => (of ? [tokenizerOf(of, tokenizer)] : []))];
  const ends = [...new Set(tokenizers.flatMap(answerEnds))];
  return { base, spec, exact, notices, tokenizer, ends, adapters, questions, device, precision };
}

/** Names of the files that prompts are in. */
function fileNames({ prompt, prompts }: PromptOptions, named: readonly Named[]): readonly string[] {
  if (prompts !== undefined) return [prompts];
  return prompt === undefined ? named.flatMap(({ recipe }) => (recipe ? [...recipe.train, ...recipe.eval] : [])) : [];
}

/** The adapters that are given; without one, all that a recipe's run has saved, or the base model alone. */
function namedBy(given: readonly string[], recipe: Recipe | null): readonly Named[] {
  const ofRecipe = (adapter: AdapterRecipe): Named => {
    return { name: adapter.name, folder: join(recipe!.run.output, adapter.name), recipe: adapter };
  };
  if (given.length === 0 && recipe) {
    const left = recipe.adapters.map(ofRecipe).filter(({ folder }) => isFile(join(folder!, "adapter_config.json")));
    if (left.length > 0) return left;
    throw new RequestError(
      "generate.adapter",
      `${recipe.run.output} holds none of the recipe's adapters`,
      `train them first (mlora run), or give --adapter ${BASE} for the base model alone`,
    );
  }
  const named = given.map((text): Named => {
    const known = recipe?.adapters.find(({ name }) => name === text);
    if (known) return ofRecipe(known);
    if (text === BASE) return { name: BASE, folder: null, recipe: null };
    return { name: basename(resolve(text)), folder: resolve(text), recipe: null };
  });
  for (const { name, folder, recipe: own } of recipe ? named : [])
    if (folder !== null && !isFile(join(folder, "adapter_config.json")))
      throw new RequestError(
        "generate.adapter",
        own
          ? `the adapter '${name}' is not in ${recipe!.run.output}`
          : `${folder} holds no adapter, and the recipe names none '${name}'`,
        own ? "train it first (mlora run)" : `it has ${recipe!.adapters.map((adapter) => adapter.name).join(", ")}`,
      );
  const twice = named.find(({ name }, i) => named.findIndex((other) => other.name === name) !== i);
  // Adapters of several runs may have the same name: then they are named by their paths.
  const all = twice ? named.map((of, i) => ({ ...of, name: given[i]! })) : named;
  const same = all.find(({ name }, i) => all.findIndex((other) => other.name === name) !== i);
  if (same) throw new RequestError("cli.flag", `--adapter ${same.name} was given twice`, "name each adapter once");
  return all.length > 0 ? all : [{ name: BASE, folder: null, recipe: null }];
}

/** The base model's folder: as given, or as the adapters name it. */
function baseFolder(given: string | undefined, named: readonly Named[]): string {
  const folders = named.flatMap(({ folder }) => (folder === null ? [] : [folder]));
  if (folders.length === 0) {
    if (given === undefined)
      throw new RequestError("generate.base", "no base model is named", "give a base model's folder, a recipe, or --adapter");
    if (!isModelPath(given))
      throw new RequestError("generate.base", `${given} is no folder`, "give a Hugging Face folder, or a recipe (*.toml)");
    return resolve(given);
  }
  const bases = folders.map((folder) => baseOf(folder, given ?? null, ASK));
  const other = bases.findIndex((base) => base !== bases[0]);
  if (other > 0)
    throw new RequestError(
      "generate.base",
      `${folders[0]} was trained on ${bases[0]}, ${folders[other]} on ${bases[other]}`,
      "generate with adapters of one base model at a time, or name the base model",
    );
  return bases[0]!;
}

/**
 * --prompt and each row of --prompts that names no adapter go to all adapters; without both, a recipe's
 * evaluation rows to their own.
 */
function questionsOf(
  { prompt, prompts, system: ownSystem, isRaw }: PromptOptions,
  named: readonly Named[],
  adapters: readonly NamedAdapter[],
  tokenizer: Tokenizer,
  spec: ModelSpec,
  files: FilesOf,
): readonly Question[] {
  const readingOf = ({ recipe }: Pick<Named, "recipe">): Reading => {
    const chatTemplate = isRaw ? false : (recipe?.chatTemplate ?? true);
    const own = tokenizerOf({ chatTemplate }, tokenizer);
    const { format = "auto", columns = {}, template = null, chatVariables = {}, thoughts = "as-template" } = recipe ?? {};
    const system = ownSystem ?? recipe?.system ?? null;
    return {
      options: formatOptionsOf({ format, columns, template, system, chatVariables, thoughts, chatTemplate }, own),
      tokenizer: own,
    };
  };
  const ask = (of: Named, asked: Prompt, place: string): Question => {
    return { ...asked, name: of.name, adapter: adapters.findIndex(({ name }) => name === of.name), place };
  };
  if (prompt !== undefined) return named.map((of) => ask(of, fromFlag(prompt, readingOf(of), spec), "--prompt"));
  if (prompts !== undefined) {
    const find = (name: string) => named.find((of) => of.name === name) ?? unknownAdapter(name, named);
    return named.flatMap((of) => {
      const rows = filesNamed([prompts], files).flatMap((file) =>
        readPrompts(file, (name) => readingOf(name === null ? of : find(name)), spec.vocab),
      );
      return rows.flatMap((row) => ((row.adapter ?? of.name) === of.name ? [ask(of, row, row.place)] : []));
    });
  }
  const questions = named.flatMap((of) => {
    if (!of.recipe) return [];
    const { eval: rows } = loadDataset(
      { ...of.recipe, trainOn: "completion" },
      tokenizer,
      spec.vocab,
      new Map(),
      undefined,
      files,
    );
    return rows.map((row) => ask(of, splitAnswer(row), `${row.source.file}:${row.source.line}`));
  });
  if (questions.length > 0) return questions;
  throw new RequestError("generate.prompt", "there is no prompt", "give --prompt TEXT or --prompts FILE.jsonl");
}

function unknownAdapter(name: string, named: readonly Named[]): never {
  throw new RowFault(`names the adapter '${name}'; there are ${named.map((of) => of.name).join(", ")}`);
}

function fromFlag(text: string, reading: Reading, spec: ModelSpec): Prompt {
  try {
    const prompt = promptOf(text, reading);
    checkIds(prompt.ids, spec.vocab);
    return prompt;
  } catch (error) {
    if (!(error instanceof RowFault)) throw error;
    throw new RequestError("generate.prompt", `--prompt ${error.message.replace("'prompt'", "text")}`);
  }
}
