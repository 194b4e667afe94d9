// The rows of a recipe as they will be trained: what is learned, cut, dropped and left out.

import { RequestError } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import { maxOf, range, sum } from "../../base/shape.ts";
import { shortPath } from "../../base/units.ts";
import { filesNamed } from "../../data/data-file.ts";
import { type Dataset, loadDataset, type ReadFiles, type Sample } from "../../data/dataset.ts";
import { type InspectedRow, inspectRows } from "../../data/inspect.ts";
import { loadTokenizer, type Tokenizer } from "../../data/tokenizer.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { nearest } from "../../recipe/suggest.ts";
import { type Row, sequencesOf } from "../../schedule/pack.ts";
import { openFiles } from "../../sources/open.ts";
import { dataNames, specFor, withLocalModel } from "./prepare.ts";

export { noticeText } from "../../data/notices.ts";

export type DataQuery = {
  /** Of this adapter alone; null: of all. */
  readonly adapter: string | null;
  /** This row of the files, from 1; null: counts of all rows, and the first few. */
  readonly row: number | null;
  /** Rows of the evaluation files. */
  readonly isEval: boolean;
};

/** Of one adapter; `counts` is null where a single row was asked for. */
export type DataDescription = {
  readonly adapter: AdapterRecipe;
  readonly counts: ReturnType<typeof countsOf> | null;
  readonly rows: readonly RowDescription[];
  /** The text of tokens. */
  readonly decode: Tokenizer["decode"];
};
export type RowDescription = ReturnType<typeof describeRow>;
export type SequenceDescription = RowDescription["sequences"][number];

/** What becomes of a token: its loss counts, it is only read, or it lies beyond max_length. */
export type Role = "learned" | "read" | "cut";
/** Neighbouring tokens of one role, as text. */
export type Run = { readonly role: Role; readonly text: string };

/** Rows that are shown where none is asked for. */
const SHOWN = 2;

/** Reads the rows here, without a thread. Throws RequestErrors; rows at fault are described as such. */
export async function describeData(asked: Recipe, { adapter, row, isEval }: DataQuery): Promise<DataDescription[]> {
  const recipe = await withLocalModel(asked, {}, noticeLine);
  const spec = specFor(recipe);
  const adapters = chosen(recipe.adapters, adapter);
  const tokenizer = loadTokenizer(tokenizerFolder(recipe.model.path));
  const read: ReadFiles = new Map();
  const opened = await openFiles(dataNames(adapters), { notice: noticeLine });
  return adapters.map((of) => {
    const files = isEval ? of.eval : of.train;
    if (isEval && files.length === 0)
      throw new RequestError("data.eval", `adapter '${of.name}' has no files of evaluation rows`, "leave out --eval");
    const rows = take(inspectRows(filesNamed(files, opened), of, tokenizer, spec.vocab), row);
    if (row !== null && rows.length === 0)
      throw new RequestError(
        "data.row",
        `adapter '${of.name}' has no row ${row} in ${files.map(shortPath).join(", ")}`,
        "leave out --row, which counts from 1, to see how many there are",
      );
    return {
      adapter: of,
      counts: row === null ? countsOf(loadDataset(of, tokenizer, spec.vocab, read, undefined, opened)) : null,
      rows: rows.map((row) => describeRow(row, tokenizer)),
      decode: tokenizer.decode,
    };
  });
}

const noticeLine = (text: string): void => log(0, () => `notice: ${text}`);

function chosen(adapters: readonly AdapterRecipe[], name: string | null): readonly AdapterRecipe[] {
  if (name === null) return adapters;
  const found = adapters.filter((adapter) => adapter.name === name);
  if (found.length > 0) return found;
  const names = adapters.map((adapter) => adapter.name);
  const meant = nearest(name, names);
  throw new RequestError(
    "data.adapter",
    `the recipe has no adapter '${name}'`,
    `${meant ? `did you mean '${meant}'? ` : ""}it has ${names.join(", ")}`,
  );
}

/** Row number `wanted`, from 1; without it the first few. */
function take(rows: Iterable<InspectedRow>, wanted: number | null): InspectedRow[] {
  const taken: InspectedRow[] = [];
  let n = 0;
  for (const row of rows) {
    n++;
    if (wanted === null || n === wanted) taken.push(row);
    if (n === (wanted ?? SHOWN)) break;
  }
  return taken;
}

const lengthsOf = (samples: readonly Sample[]): number[] =>
  samples.flatMap((row) => sequencesOf(row).map(({ ids }) => ids.length));
const learnedIn = (samples: readonly Sample[]): number =>
  sum(samples.flatMap((row) => sequencesOf(row).map(({ mask }) => sum(mask))));

function countsOf({ train, eval: heldOut, counts, notices }: Dataset) {
  const lengths = lengthsOf(train).sort((a, b) => a - b);
  const at = (share: number) => lengths[Math.min(lengths.length - 1, Math.floor(share * lengths.length))] ?? 0;
  return {
    train_rows: train.length,
    eval_rows: heldOut.length,
    read: counts.rows,
    truncated: counts.truncated,
    dropped: counts.dropped,
    notices,
    tokens: sum(lengths),
    learned_tokens: learnedIn(train),
    lengths: { shortest: at(0), median: at(0.5), p95: at(0.95), longest: lengths.at(-1) ?? 0, bins: binsOf(lengths) },
  };
}

const describeRow = ({ place, sequences, label, notices, dropped, fault }: InspectedRow, { decode }: Tokenizer) => ({
  place,
  notices,
  ...(label === undefined ? {} : { label }),
  dropped,
  fault,
  sequences: sequences.map(({ name, ids, mask, kept }) => ({
    name,
    ids,
    weights: mask,
    kept,
    text: runsOf(ids, mask, kept, decode),
  })),
});

/** The runs of a sequence; tokens from `kept` on are cut. `decode` turns ids into text. */
function runsOf(ids: readonly number[], mask: readonly number[], kept: number, decode: Tokenizer["decode"]): Run[] {
  const roleOf = (i: number): Role => (i >= kept ? "cut" : mask[i] === 1 ? "learned" : "read");
  const runs: Run[] = [];
  for (let from = 0; from < ids.length; ) {
    const role = roleOf(from);
    let to = from + 1;
    while (to < ids.length && roleOf(to) === role) to++;
    runs.push({ role, text: decode(ids.slice(from, to)) });
    from = to;
  }
  return runs;
}

/** The sequences of a row as it is trained, of which nothing is cut any more; no more than `most` tokens of each. */
export const runsOfRow = (row: Row, decode: Tokenizer["decode"], most: number): Run[][] =>
  sequencesOf(row).map(({ ids, mask }) => {
    const shown = Math.min(most, ids.length);
    return runsOf([...ids.subarray(0, shown)], [...mask.subarray(0, shown)], shown, decode);
  });

const BINS = 12;
/** Steps that people count in: 1, 2 or 5 times a power of ten. */
const niceStep = (least: number): number => {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least)!;
};

export type Bin = { readonly from: number; readonly to: number; readonly count: number };

/** Whole numbers, 0 or more, in at most about a dozen bins of equal width, `to` inclusive. No bins of no values. */
function binsOf(values: readonly number[]): Bin[] {
  if (values.length === 0) return [];
  const [least, most] = [-maxOf(values.map((value) => -value)), maxOf(values)];
  const step = niceStep(Math.max(1, (most - least + 1) / BINS));
  const first = Math.floor(least / step);
  const counts = range(Math.floor(most / step) - first + 1).map(() => 0);
  for (const value of values) counts[Math.floor(value / step) - first]!++;
  return counts.map((count, i) => ({ from: (first + i) * step, to: (first + i + 1) * step - 1, count }));
}
