// The rows that an adapter trains on and is measured on: read, tokenised, cut to length and counted.

import { RequestError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import { sum } from "../base/shape.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { exampleReader } from "./format.ts";
import { checkDataFile, placeOf, RowFault, rowsOf, type Source } from "./jsonl.ts";
import { type TokenRow, tokenise } from "./tokenise.ts";
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

/** Files that were read, for adapters that read the same ones in the same way: those of a sweep do. */
export type ReadFiles = Map<string, FileRows>;
type FileRows = {
  readonly samples: readonly Sample[];
  readonly rows: number;
  readonly truncated: number;
  readonly dropped: number;
};

/** Faults of a file that are told before the rest is left unread. */
const SHOWN = 5;

/** Reads an adapter's data. Every RequestError names the file, and the line where there is one. */
export function loadDataset(recipe: DatasetRecipe, tokenizer: Tokenizer, vocab: number, read: ReadFiles = new Map()): Dataset {
  for (const file of [...recipe.train, ...recipe.eval]) checkDataFile(file);
  const { format, template, chatTemplate, system, trainOn, maxLength, overlong } = recipe;
  const rowsIn = (file: string): FileRows => {
    const key = JSON.stringify([file, format, template, chatTemplate, system, trainOn, maxLength, overlong]);
    const rows = read.get(key) ?? readFile(file, recipe, tokenizer, vocab);
    read.set(key, rows);
    return rows;
  };
  const [train, held] = [recipe.train.map(rowsIn), recipe.eval.map(rowsIn)];
  const total = (count: "rows" | "truncated" | "dropped") => sum([...train, ...held].map((file) => file[count]));
  const samples = train.flatMap((file) => file.samples);
  return {
    ...(held.length > 0 ? { train: samples, eval: held.flatMap((file) => file.samples) } : splitRows(samples, recipe)),
    counts: { rows: total("rows"), truncated: total("truncated"), dropped: total("dropped") },
  };
}

function readFile(file: string, recipe: DatasetRecipe, tokenizer: Tokenizer, vocab: number): FileRows {
  const { format, template, system, chatTemplate } = recipe;
  const toExample = exampleReader({ format, template, system, asChat: chatTemplate && tokenizer.hasChatTemplate });
  const samples: Sample[] = [];
  const faults: string[] = [];
  const counts = { rows: 0, truncated: 0, dropped: 0 };
  for (const row of rowsOf(file)) {
    counts.rows++;
    try {
      if ("fault" in row) throw new RowFault(row.fault);
      const tokens = tokenise(toExample(row.fields), tokenizer, recipe.trainOn);
      checkIds(tokens.ids, vocab);
      const { sample, truncated } = fit(tokens, row.source, recipe);
      if (sample) samples.push(sample);
      else counts.dropped++;
      if (truncated) counts.truncated++;
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      faults.push(`${placeOf(row.source)}: ${error.message}`);
      if (faults.length === SHOWN) break;
    }
  }
  if (faults.length > 0)
    throw new RequestError("data.row", faults.join("\n"), `adapter '${recipe.name}': mend or remove the rows named`);
  if (samples.length === 0) throw nothingIn(file, counts.rows, recipe);
  return { samples, ...counts };
}

function nothingIn(file: string, rows: number, { name, maxLength, overlong }: DatasetRecipe): RequestError {
  const why =
    overlong === "drop"
      ? `are longer than max_length ${maxLength} or too short to learn from`
      : `have nothing to learn within max_length ${maxLength}`;
  return new RequestError(
    "data.file",
    `${file}: ${rows === 0 ? "has no row" : `has no usable row: all ${rows} ${why}`}`,
    `adapter '${name}' needs at least one row with something to learn${rows === 0 ? "" : ": raise max_length"}`,
  );
}

function checkIds(ids: readonly number[], vocab: number): void {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocab));
  if (wrong !== undefined)
    throw new RowFault(`has the token ${wrong}; the model knows ${vocab} (the tokenizer is another model's)`);
}

/** The row within max_length; none where it is dropped: too long, or nothing to learn is left. */
function fit(
  { ids, mask }: TokenRow,
  source: Source,
  { maxLength, overlong }: DatasetRecipe,
): { readonly sample: Sample | null; readonly truncated: boolean } {
  const long = ids.length > maxLength;
  const kept = long ? maxLength : ids.length;
  if ((long && overlong === "drop") || !mask.slice(1, kept).includes(1)) return { sample: null, truncated: false };
  return {
    sample: { ids: Int32Array.from(ids.slice(0, kept)), mask: Uint8Array.from(mask.slice(0, kept)), source },
    truncated: long,
  };
}

/** Holds out a share of the rows, the same for the same seed; at least one row is left to train on. */
function splitRows(rows: readonly Sample[], { evalSplit, seed, name, train: files }: DatasetRecipe) {
  if (evalSplit === 0) return { train: rows, eval: [] };
  const held = Math.max(1, Math.round(rows.length * evalSplit));
  if (held >= rows.length)
    throw new RequestError(
      "data.split",
      `${files.join(", ")}: ${rows.length} rows, ${held} held out: none is left for '${name}'`,
      "lower data.split, or give more rows",
    );
  const chosen = new Set(new Rng(seed, 0x5b117).shuffle([...rows.keys()]).slice(0, held));
  return { train: rows.filter((_, i) => !chosen.has(i)), eval: rows.filter((_, i) => chosen.has(i)) };
}
