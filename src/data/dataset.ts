// The rows that an adapter trains on and is measured on: read, tokenised, cut to length and counted.

import { RequestError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { exampleReader } from "./format.ts";
import { checkDataFile, placeOf, RowFault, rowsOf, type Source } from "./jsonl.ts";
import { tokenise } from "./tokenise.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** mask[i] = 1: token i is to be predicted from those before it. */
export type Sample = { readonly ids: Int32Array; readonly mask: Uint8Array; readonly source: Source };

export type Dataset = {
  readonly train: readonly Sample[];
  readonly eval: readonly Sample[];
  readonly counts: {
    readonly rows: number; // read, of training and evaluation
    readonly truncated: number;
    readonly dropped: number;
  };
};

export type DatasetRecipe = Pick<
  AdapterRecipe,
  | "name"
  | "train"
  | "eval"
  | "evalSplit"
  | "format"
  | "template"
  | "chatTemplate"
  | "system"
  | "trainOn"
  | "maxLength"
  | "overlong"
  | "seed"
>;

/** Faults of a file that are told before the rest is left unread. */
const SHOWN = 5;

/** Reads an adapter's data. Every RequestError names the file, and the line where there is one. */
export function loadDataset(recipe: DatasetRecipe, tokenizer: Tokenizer, vocab: number): Dataset {
  for (const file of [...recipe.train, ...recipe.eval]) checkDataFile(file);
  const counts = { rows: 0, truncated: 0, dropped: 0 };
  const read = (files: readonly string[]) => files.flatMap((file) => readFile(file, recipe, tokenizer, vocab, counts));
  const rows = read(recipe.train);
  const held = read(recipe.eval);
  const { train, held: split } = splitRows(rows, recipe);
  return { train, eval: recipe.eval.length > 0 ? held : split, counts };
}

type Counts = { rows: number; truncated: number; dropped: number };

function readFile(file: string, recipe: DatasetRecipe, tokenizer: Tokenizer, vocab: number, counts: Counts): Sample[] {
  const { format, template, system } = recipe;
  const toExample = exampleReader({ format, template, system, asChat: recipe.chatTemplate && tokenizer.hasChatTemplate });
  const samples: Sample[] = [];
  const faults: string[] = [];
  const before = counts.rows;
  for (const row of rowsOf(file)) {
    counts.rows++;
    try {
      if ("fault" in row) throw new RowFault(row.fault);
      const { ids, mask } = tokenise(toExample(row.fields), tokenizer, recipe.trainOn);
      const sample = fit(ids, mask, row.source, recipe, counts);
      const wrong = ids.find((id) => !(id >= 0 && id < vocab));
      if (wrong !== undefined)
        throw new RowFault(`has the token ${wrong}; the model knows ${vocab} (the tokenizer is another model's)`);
      if (sample) samples.push(sample);
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      faults.push(`${placeOf(row.source)}: ${error.message}`);
      if (faults.length === SHOWN) break;
    }
  }
  if (faults.length > 0)
    throw new RequestError("data.row", faults.join("\n"), `adapter '${recipe.name}': mend or remove the rows named`);
  if (samples.length === 0) {
    const found = counts.rows - before;
    const why =
      found === 0
        ? "has no row"
        : `has no usable row: all ${found} are longer than max_length ${recipe.maxLength} or too short to learn from`;
    throw new RequestError(
      "data.file",
      `${file}: ${why}`,
      `adapter '${recipe.name}' needs at least one row with something to learn`,
    );
  }
  return samples;
}

/** The row within max_length, or null where it is dropped: too long, or nothing to learn is left. */
function fit(
  ids: readonly number[],
  mask: readonly number[],
  source: Source,
  recipe: DatasetRecipe,
  counts: Counts,
): Sample | null {
  const long = ids.length > recipe.maxLength;
  const kept = long ? recipe.maxLength : ids.length;
  const learns = mask.slice(1, kept).includes(1);
  if ((long && recipe.overlong === "drop") || !learns) {
    counts.dropped++;
    return null;
  }
  if (long) counts.truncated++;
  return { ids: Int32Array.from(ids.slice(0, kept)), mask: Uint8Array.from(mask.slice(0, kept)), source };
}

/** Holds out a share of the rows, the same for the same seed; at least one row is left to train on. */
function splitRows(rows: readonly Sample[], { evalSplit, seed, name, train: files }: DatasetRecipe) {
  if (evalSplit === 0) return { train: rows, held: [] };
  const held = Math.max(1, Math.round(rows.length * evalSplit));
  if (held >= rows.length)
    throw new RequestError(
      "data.split",
      `${files.join(", ")}: ${rows.length} rows, ${held} held out: none is left for '${name}'`,
      "lower data.split",
    );
  const chosen = new Set(new Rng(seed, 0x5b117).shuffle([...rows.keys()]).slice(0, held));
  return { train: rows.filter((_, i) => !chosen.has(i)), held: rows.filter((_, i) => chosen.has(i)) };
}
