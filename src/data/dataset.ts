// The rows that an adapter trains on and is measured on: read, tokenised, cut to length and counted.

import { RequestError } from "../base/errors.ts";
import type { Objective } from "../base/objective.ts";
import { Rng } from "../base/rng.ts";
import { sum } from "../base/shape.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { type Example, exampleReader, type FormatOptions, labelledReader, pairedReader, paraphrasedReader } from "./format.ts";
import { checkDataFile, type Fields, placeOf, RowFault, type RowRead, rowsOf } from "./jsonl.ts";
import { chosenOf, joined, RowPacker, type Sample, type Sequence } from "./rows.ts";
import { type TokenRow, tokenise } from "./tokenise.ts";
import type { Tokenizer } from "./tokenizer.ts";

export type { Sample } from "./rows.ts";

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
  | "objective"
  | "maxLength"
  | "overlong"
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

/** Reads an adapter's data; `row` is told of each row before it is read. Every RequestError names the file, and the line where there is one. */
export function loadDataset(
  recipe: DatasetRecipe,
  tokenizer: Tokenizer,
  vocab: number,
  read: ReadFiles = new Map(),
  row: RowRead = () => undefined,
): Dataset {
  for (const file of [...recipe.train, ...recipe.eval]) checkDataFile(file);
  const { format, template, chatTemplate, system, trainOn, objective, maxLength, overlong } = recipe;
  const rowsIn = (file: string): FileRows => {
    const key = JSON.stringify([file, format, template, chatTemplate, system, trainOn, kindOf(objective), maxLength, overlong]);
    const rows = read.get(key) ?? readFile(file, recipe, tokenizer, vocab, row);
    read.set(key, rows);
    return rows;
  };
  const [train, held] = [recipe.train.map(rowsIn), recipe.eval.map(rowsIn)];
  const total = (count: "rows" | "truncated" | "dropped") => sum([...train, ...held].map((file) => file[count]));
  const samples = joined(train.map((file) => file.samples));
  return {
    ...(held.length > 0 ? { train: samples, eval: joined(held.map((file) => file.samples)) } : splitRows(samples, recipe)),
    counts: { rows: total("rows"), truncated: total("truncated"), dropped: total("dropped") },
  };
}

function readFile(file: string, recipe: DatasetRecipe, tokenizer: Tokenizer, vocab: number, read: RowRead): FileRows {
  const { format, template, system, chatTemplate } = recipe;
  const toRow = rowReader({ format, template, system, asChat: chatTemplate && tokenizer.hasChatTemplate }, recipe, tokenizer);
  const packer = new RowPacker(file);
  const faults: string[] = [];
  const counts = { rows: 0, truncated: 0, dropped: 0 };
  for (const row of rowsOf(file, (place, bytes) => read(place, bytes, packer.bytes))) {
    counts.rows++;
    try {
      if ("fault" in row) throw new RowFault(row.fault);
      const { own, other, label } = toRow(row.fields);
      for (const { ids } of other ? [own, other] : [own]) checkIds(ids, vocab);
      const [fitting, fittingOther] = [fit(own, recipe), other && fit(other, recipe)];
      if (!fitting.sequence || (fittingOther && !fittingOther.sequence)) {
        counts.dropped++;
        continue;
      }
      if (fitting.truncated || fittingOther?.truncated) counts.truncated++;
      const more = fittingOther?.sequence ? { other: fittingOther.sequence } : {};
      packer.push({ ...fitting.sequence, ...more, ...(label === undefined ? {} : { label }), source: row.source });
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      faults.push(`${placeOf(row.source)}: ${error.message}`);
      if (faults.length === SHOWN) break;
    }
  }
  if (faults.length > 0)
    throw new RequestError(
      "data.row",
      faults.join("\n"),
      `adapter '${recipe.name}': mend or remove the rows named${faults.length === SHOWN ? "; what follows them was not read" : ""}`,
    );
  const samples = packer.rows;
  if (samples.length === 0) throw nothingIn(file, counts.rows, recipe);
  if (recipe.objective.name === "cit" && samples.length < 2) throw oneRow(file, recipe, "CIT tells paraphrases apart");
  return { samples: recipe.objective.name === "kto" ? mismatched(samples, file, recipe) : samples, ...counts };
}

/** What rows a file must have: for KTO single answers with labels, for CIT paraphrases, for other preferences two answers, else one. */
const kindOf = ({ name }: Objective): "single" | "labelled" | "paraphrased" | "paired" =>
  name === "sft" ? "single" : name === "kto" ? "labelled" : name === "cit" ? "paraphrased" : "paired";

type TokenisedRow = { readonly own: TokenRow; readonly other: TokenRow | null; readonly label?: boolean };

function rowReader(options: FormatOptions, { objective, trainOn }: DatasetRecipe, tokenizer: Tokenizer) {
  const kind = kindOf(objective);
  const tokens = (example: Example) => tokenise(example, tokenizer, trainOn);
  if (kind === "single") {
    const read = exampleReader(options);
    return (fields: Fields): TokenisedRow => ({ own: tokens(read(fields)), other: null });
  }
  const readers = { labelled: labelledReader, paraphrased: paraphrasedReader, paired: pairedReader };
  const read = readers[kind](options);
  return (fields: Fields): TokenisedRow => {
    const { own, other, label } = read(fields);
    return { own: tokens(own), other: other && tokens(other), ...(kind === "labelled" ? { label } : {}) };
  };
}

/** KTO's reference point is measured on answers to other prompts: each row gets the next one's, and the last the first's. */
function mismatched(samples: readonly Sample[], file: string, recipe: DatasetRecipe): readonly Sample[] {
  if (samples.length < 2) throw oneRow(file, recipe, "KTO measures answers to other prompts");
  const { maxLength } = recipe;
  const answerFrom = ({ mask }: Sample) => mask.indexOf(1);
  const packer = new RowPacker(file);
  for (const [i, sample] of samples.entries()) {
    const next = samples[(i + 1) % samples.length]!;
    const [prompt, answer] = [answerFrom(sample), answerFrom(next)];
    const join = <T extends Int32Array | Uint8Array>(a: T, b: T, type: { from(values: Iterable<number>): T }): T =>
      type.from([...a.subarray(0, prompt), ...b.subarray(answer)].slice(0, maxLength));
    const other = { ids: join(sample.ids, next.ids, Int32Array), mask: join(sample.mask, next.mask, Uint8Array) };
    packer.push({ ...sample, other });
  }
  return packer.rows;
}

const oneRow = (file: string, { name }: DatasetRecipe, why: string): RequestError =>
  new RequestError("data.file", `${file}: has one row`, `adapter '${name}' needs two or more: ${why}`);

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

/** Throws a RowFault for a token that the model has not. */
export function checkIds(ids: readonly number[], vocab: number): void {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocab));
  if (wrong !== undefined)
    throw new RowFault(`has the token ${wrong}; the model knows ${vocab} (the tokenizer is another model's)`);
}

/** The sequence within max_length; none where it is dropped: too long, or nothing to learn is left. */
function fit(
  { ids, mask }: TokenRow,
  { maxLength, overlong }: DatasetRecipe,
): { readonly sequence: Sequence | null; readonly truncated: boolean } {
  const long = ids.length > maxLength;
  const kept = long ? maxLength : ids.length;
  if ((long && overlong === "drop") || !mask.slice(1, kept).includes(1)) return { sequence: null, truncated: false };
  return {
    sequence: { ids: Int32Array.from(ids.slice(0, kept)), mask: Uint8Array.from(mask.slice(0, kept)) },
    truncated: long,
  };
}

/**
 * Holds out a share of the rows; at least one row is left to train on. Whoever shares out the same rows holds out the same ones, whatever
 * its seed: adapters of a sweep are held against each other.
 */
function splitRows(rows: readonly Sample[], { evalSplit, name, train: files }: DatasetRecipe) {
  if (evalSplit === 0) return { train: rows, eval: [] };
  const held = Math.max(1, Math.round(rows.length * evalSplit));
  if (held >= rows.length)
    throw new RequestError(
      "data.split",
      `${files.join(", ")}: ${rows.length} rows, ${held} held out: none is left for '${name}'`,
      "lower data.split, or give more rows",
    );
  const chosen = new Set(new Rng(0x5b117).shuffle([...rows.keys()]).slice(0, held));
  return { train: chosenOf(rows, (row) => !chosen.has(row)), eval: chosenOf(rows, (row) => chosen.has(row)) };
}
