// A first recipe for a base model and a file of rows, from what its first rows hold.

import { existsSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { maxOf } from "../../base/shape.ts";
import { hasScheme, isHub, isRemote, REPO } from "../../base/source-name.ts";
import { count, counted, shortPath } from "../../base/units.ts";
import { checkDataFile, type DataFile, rowsOf } from "../../data/data-file.ts";
import { formatOf } from "../../data/format.ts";
import { inspectRows } from "../../data/inspect.ts";
import { type Fields, placeOf, RowFault } from "../../data/jsonl.ts";
import { loadTokenizer } from "../../data/tokenizer.ts";
import { isModelPath } from "../../files/modelpath.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import { commentedRecipe, type FirstTables } from "../../recipe/commented.ts";
import { parseRecipe } from "../../recipe/load.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { NAME } from "../../recipe/schema.ts";
import { openFiles, openModel } from "../../sources/open.ts";
import { specFor } from "./prepare.ts";

/** Rows that are looked at. */
const LOOKED_AT = 1000;
/** Fewer rows than this are all trained on. */
const HELD_OUT_FROM = 20;
const HELD_OUT = 0.1;
const BATCH = 4;
/**
 * Fewer steps teach little: of 40 questions the 4 that are held out are answered exactly after 81 (SmolLM2-135M), and none
 * after 27. Of very few rows not 100, which would be learned by heart.
 */
const [LEAST_STEPS, MOST_EPOCHS] = [100, 20];
/** Tokens to which `max_length` is rounded up, and the most that is proposed: more is the user's to ask for. */
const [LENGTH_STEP, MOST_LENGTH] = [64, 4096];

/** Names under which others have a question and its answer; the first that a row has counts. */
const QUESTIONS = ["prompt", "instruction", "question", "query", "input"];
const ANSWERS = ["completion", "response", "answer", "output"];

type Adapter = FirstTables["adapter"];

/** As `firstRecipe`, also of a compressed file, an address, and names of a hub (hf://...); of a pattern by its first file. */
export async function openFirstRecipe(model: string, file: string, path: string): Promise<string> {
  if (!isModelPath(model) && REPO.test(model))
    throw new RequestError("init.model", `${model}: no such folder`, `a model of the Hugging Face hub is named hf://${model}`);
  if (hasScheme(model) && !isHub(model))
    throw new RequestError("init.model", `${model} is an address`, "a model of the Hugging Face hub is named hf://org/name");
  if (!isModelPath(model) && existsSync(model) && existsSync(join(file, "config.json")))
    throw new RequestError(
      "init.order",
      `${model} is a file, and ${file} the folder of a model`,
      `the model comes first: mlora init ${file} ${model}`,
    );
  const name = isRemote(file) ? file : resolve(file);
  const [first] = (await openFiles([name])).get(name)!;
  return firstRecipe(
    model,
    file,
    path,
    { name: isRemote(file) ? first!.name : file, path: first!.path },
    await openModel(model),
  );
}

/**
 * The text of a recipe at `path`, which runs as it is. Throws RequestErrors: for a model or a file that cannot be read, for a
 * row that cannot be trained on, and where the rows' fields do not say what is to be learned.
 */
export function firstRecipe(
  model: string,
  file: string,
  path: string,
  read: DataFile = { name: file, path: file },
  opened = model,
): string {
  const folder = dirname(resolve(path));
  const here = (to: string) => (isRemote(to) ? to : relative(folder, resolve(to)) || ".");
  checkDataFile(read);
  const name = nameOf(file);
  const base = { path: isModelPath(model) ? here(model) : model };
  const run = { output: `out/${name}`, seed: 42, device: "auto" };
  const form = formOf(firstFields(read), file);
  const recipeOf = (adapter: Adapter, further: FirstTables["further"] = {}, notes: readonly string[] = []) => {
    const text = commentedRecipe({ model: base, run, adapter: { name, ...adapter }, further, notes });
    return { text, recipe: parseRecipe(text, resolve(path)) };
  };
  const look = recipeOf({ data: here(file), ...form, max_length: 1 << 24 }).recipe;
  const place = isHub(model) ? opened : look.model.path;
  const { maxPositions, vocab } = specFor({ ...look, model: { ...look.model, path: place } });
  const source = { name: isRemote(file) ? read.name : resolve(file), path: read.path };
  const { rows, isAll, longest } = rowsIn(source, look.adapters[0]!, place, vocab);
  const length = Math.min(maxPositions, MOST_LENGTH, LENGTH_STEP * Math.ceil(Math.max(longest, 2) / LENGTH_STEP));
  const isSplit = rows >= HELD_OUT_FROM;
  const data = isSplit ? { train: here(file), split: HELD_OUT } : here(file);
  const notes = [
    `${isAll ? `${counted(rows, "row")} in all;` : `The first ${counted(rows, "row")} of the file:`} the longest has ${counted(longest, "token")}${longest > length ? `, of which ${count(longest - length)} are cut` : ""}.`,
    ...(isSplit
      ? []
      : ["Too few to hold some out: give eval rows in data = { train = ..., eval = ... } to measure what is learned."]),
  ];
  const perEpoch = Math.ceil((rows * (isSplit ? 1 - HELD_OUT : 1)) / BATCH);
  const epochs = isAll && rows < LOOKED_AT ? Math.min(MOST_EPOCHS, Math.max(3, Math.ceil(LEAST_STEPS / perEpoch))) : 1;
  const adapter: Adapter = {
    data,
    ...form,
    rank: 16,
    alpha: 32,
    dropout: 0,
    targets: "all-linear",
    learning_rate: 2e-4,
    scheduler: "linear",
    warmup: 0.03,
    epochs,
    batch_size: BATCH,
    max_length: length,
    ...(isSplit ? { eval_every: Math.min(50, Math.ceil((epochs * perEpoch) / 4)) } : {}),
  };
  const further = {
    system: "You are a helpful assistant.",
    ...(isSplit ? { patience: 3 } : {}),
    accumulation: 2,
    optimizer: "adamw-8bit",
  };
  return recipeOf(adapter, further, notes).text;
}

/** File names that say nothing of what is in them. */
const PLAIN = /^(train|training|data|dataset|rows)$/;

/** "Support rows.v2.jsonl" as "support-rows", and "tickets/train.jsonl" as "tickets". */
function nameOf(file: string): string {
  const plain = (path: string) =>
    basename(path)
      .split(".")[0]!
      .toLowerCase()
      .replace(/[^a-z0-9_-]+/g, "-")
      .replace(/^[^a-z0-9]+|-+$/g, "")
      .slice(0, 64);
  const names = [plain(file), plain(dirname(resolve(file)))];
  return names.find((name) => NAME.test(name) && !PLAIN.test(name)) ?? "adapter";
}

function firstFields(file: DataFile): Fields {
  for (const row of rowsOf(file)) {
    if ("fields" in row) return row.fields;
    throw new RequestError("init.row", `${placeOf(row.source)}: ${row.fault}`);
  }
  throw new RequestError("init.rows", `${shortPath(file.name)} has no row`);
}

/** What the fields of a row say that it is for, as keys of an adapter. */
function formOf(fields: Fields, file: string): Adapter {
  const has = (...names: readonly string[]) => names.every((name) => name in fields);
  if (has("chosen", "rejected") || has("preferred_output", "non_preferred_output")) return { objective: "dpo" };
  if (has("prompt", "completion", "label") && typeof fields["label"] === "boolean") return { objective: "kto" };
  if (has("prompt", "paraphrase", "completion")) return { objective: "cit" };
  try {
    return { format: formatOf(fields) };
  } catch (error) {
    if (!(error instanceof RowFault)) throw error;
    const [prompt, completion] = [QUESTIONS, ANSWERS].map((names) => names.find((name) => typeof fields[name] === "string"));
    if (prompt && completion)
      return { format: "template", template: { prompt: `{{ ${prompt} }}`, completion: `{{ ${completion} }}` } };
    const hint = 'write a recipe with format = "template" and template = { prompt = ..., completion = ... }';
    throw new RequestError("init.form", `${shortPath(file)}: its first row ${error.message}`, hint);
  }
}

/** Reads the first rows as training does. */
function rowsIn(file: DataFile, recipe: AdapterRecipe, model: string, vocab: number) {
  const tokenizer = loadTokenizer(tokenizerFolder(model));
  let [rows, longest, isAll] = [0, 0, true];
  for (const { place, sequences, fault } of inspectRows([file], recipe, tokenizer, vocab)) {
    if (fault !== null) throw new RequestError("init.row", `${place}: ${fault}`, "fix or remove the row");
    longest = Math.max(longest, maxOf(sequences.map(({ ids }) => ids.length)));
    isAll = ++rows < LOOKED_AT;
    if (!isAll) break;
  }
  return { rows, isAll, longest };
}
