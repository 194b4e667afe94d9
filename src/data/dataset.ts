// The rows that an adapter trains on and is measured on: which of its files each is of, which are held out, and how many.

import { RequestError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import { rangeOfRows, sum } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import { rowKindOf } from "../objectives/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { checkDataFile, type DataFile, type FilesOf, filesNamed } from "./data-file.ts";
import { cachedRows, type FileRows, type TokenCache } from "./file-rows.ts";
import { newTokens } from "./fit-row.ts";
import { trainedToo } from "./held-out.ts";
import { stringifyJson } from "./json.ts";
import { mergedNotices, type Notice } from "./notices.ts";
import type { ReadingWatch } from "./pack-rows.ts";
import type { RowPool } from "./row-pool.ts";
import { tokenizerOf } from "./row-reader.ts";
import { chosenOf, ints, joined, Numbers, type Sample } from "./rows.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { walkSources } from "./walk.ts";

export type { Sample } from "./rows.ts";

export type Dataset = {
  readonly train: readonly Sample[];
  readonly eval: readonly Sample[];
  /** How many rows of `train` each of the recipe's sources has, in their order. */
  readonly sizes: readonly number[];
  readonly counts: {
    readonly rows: number; // read, of training and evaluation
    readonly truncated: number;
    readonly dropped: number;
  };
  /** What was left out, cut or read otherwise than it might seem, by kind. */
  readonly notices: readonly Notice[];
};

export type DatasetRecipe = Pick<
  AdapterRecipe,
  | "name"
  | "train"
  | "eval"
  | "evalSplit"
  | "mostRows"
  | "format"
  | "columns"
  | "template"
  | "chatTemplate"
  | "chatVariables"
  | "thoughts"
  | "system"
  | "trainOn"
  | "objective"
  | "maxLength"
  | "overlong"
>;

/** Files that were read, for adapters that read the same ones in the same way: those of a sweep do. */
export type ReadFiles = Map<string, FileRows>;

/**
 * Reads an adapter's data, with the threads of a pool where there is one; `rowsOf` gives the rows of a file, from the cache or
 * from the file unless it is given. Every RequestError names the file, and the line where there is one.
 */
export function loadDataset(
  recipe: DatasetRecipe,
  tokenizer: Tokenizer,
  vocab: number,
  read: ReadFiles = new Map(),
  watch: ReadingWatch = {},
  files: FilesOf = new Map(),
  cache: TokenCache | null = null,
  pool: RowPool | null = null,
  rowsOf: typeof cachedRows = cachedRows,
): Dataset {
  const [trainFiles, evalFiles] = [recipe.train, recipe.eval].map((names) => names.map((name) => filesNamed([name], files)));
  for (const file of [...trainFiles!, ...evalFiles!].flat()) checkDataFile(file);
  const { format, columns, template, chatTemplate, chatVariables, thoughts, system, trainOn, objective, maxLength, overlong } =
    recipe;
  const form = [
    format,
    columns,
    template,
    chatTemplate,
    chatVariables,
    thoughts,
    system,
    trainOn,
    rowKindOf(objective),
    maxLength,
    overlong,
    ...newTokens(objective),
  ];
  const own = tokenizerOf(recipe, tokenizer);
  const rowsIn = (file: DataFile, most: number | null): FileRows => {
    const key = stringifyJson([file.name, most, ...form])!;
    const from = { file, recipe, tokenizer: own, vocab, watch, most, pool };
    const rows = read.get(key) ?? rowsOf(from, [chatTemplate !== false, ...form], cache);
    read.set(key, rows);
    return rows;
  };
  const source = (of: readonly DataFile[], most: number | null): readonly FileRows[] => {
    const rows: FileRows[] = [];
    for (const file of of) {
      const left = most === null ? null : most - sum(rows.map((one) => one.rows));
      if (left === 0) break;
      rows.push(rowsIn(file, left));
    }
    return rows;
  };
  const { mostRows } = recipe;
  const sources = trainFiles!.map((of, i) => source(of, mostRows?.train[i] ?? null));
  const [train, heldOut] = [sources.flat(), evalFiles!.flatMap((of, i) => source(of, mostRows?.eval[i] ?? null))];
  const total = (count: "rows" | "truncated" | "dropped") => sum([...train, ...heldOut].map((file) => file[count]));
  const samples = joined(train.map((file) => file.samples));
  const sizes = sources.map((of) => sum(of.map((one) => one.samples.length)));
  const rows =
    heldOut.length > 0 || recipe.evalSplit === 0
      ? { train: samples, eval: joined(heldOut.map((file) => file.samples)), sizes }
      : splitRows(samples, sizes, recipe);
  return {
    ...rows,
    counts: { rows: total("rows"), truncated: total("truncated"), dropped: total("dropped") },
    notices: mergedNotices([
      ...[...new Set([...train, ...heldOut])].map(({ notices }) => notices),
      trainedToo(rows.train, rows.eval).notices,
    ]),
  };
}

/**
 * Holds out a share of the rows; at least one row is left to train on. Whoever shares out the same rows holds out the same
 * ones, whatever its seed: adapters of a sweep are held against each other.
 */
function splitRows(rows: readonly Sample[], sizes: readonly number[], { evalSplit, name, train: files }: DatasetRecipe) {
  // What comes from one row is held out together. Groups of a file are by line, from 1 on.
  const lines = new Map<string, Numbers>();
  const group = new Int32Array(rows.length);
  let first = 0;
  let [latest, groups]: [string | null, Numbers] = [null, new Numbers(ints)];
  walkSources(rows, (file, line, row) => {
    if (file !== latest) [latest, groups] = [file, lines.getOrInsertComputed(file, () => new Numbers(ints))];
    if (groups.at(line) === 0) groups.set(line, ++first);
    group[row] = groups.at(line) - 1;
  });
  const heldOut = Math.max(1, Math.round(first * evalSplit));
  if (heldOut >= first)
    throw new RequestError(
      "data.split",
      `${files.join(", ")}: ${counted(first, "row")}, ${heldOut} held out: none is left for '${name}'`,
      "lower data.split, or give more rows",
    );
  const chosen = new Uint8Array(first);
  for (const one of new Rng(0x5b117).shuffle(rangeOfRows(first)).subarray(0, heldOut)) chosen[one] = 1;
  const isHeldOut = (i: number) => chosen[group[i]!] === 1;
  let row = 0;
  const left = sizes.map((size) => {
    let kept = 0;
    for (const end = row + size; row < end; row++) kept += Number(!isHeldOut(row));
    return kept;
  });
  return { train: chosenOf(rows, (i) => !isHeldOut(i)), eval: chosenOf(rows, isHeldOut), sizes: left };
}
