// `mlora data RECIPE [ADAPTER]`: an adapter's rows as they will be trained, without training.

import { basename } from "node:path";
import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import { jsonText, visible, writeStdout } from "../base/terminal.ts";
import { count } from "../base/units.ts";
import { type Dataset, loadDataset, type ReadFiles, type Sample } from "../data/dataset.ts";
import { type InspectedRow, type InspectedSequence, inspectRows } from "../data/inspect.ts";
import { noticeText } from "../data/notices.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { tokenizerFolder } from "../files/tokenizer.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { nearest } from "../recipe/suggest.ts";
import { sequencesOf } from "../schedule/pack.ts";
import { readRecipe, shortPath } from "../session/prepare.ts";
import { binsOf, drawHistogram } from "./draw/histogram.ts";
import { screenOf } from "./draw/screen.ts";
import { type Screen, wrapped } from "./draw/terminal.ts";
import { drawRuns, legend, runsOf } from "./draw/tokens.ts";
import { percent } from "./draw/words.ts";
import { wholeNumber } from "./flags.ts";
import { table } from "./table.ts";

export type DataFlags = {
  readonly row?: unknown;
  readonly eval?: boolean;
  readonly ids?: boolean;
  readonly json?: boolean;
};

/** Rows that are shown where none is asked for. */
const SHOWN = 2;

export function data(recipePath: string, adapter: string | undefined, flags: DataFlags): void {
  const wanted = flags.row === undefined ? null : wholeNumber("row", flags.row, 1);
  const { recipe, spec } = readRecipe(recipePath, {});
  const adapters = chosen(recipe.adapters, adapter);
  const tokenizer = loadTokenizer(tokenizerFolder(recipe.model.path));
  const read: ReadFiles = new Map();
  const screen = screenOf(process.stdout);
  const told = adapters.map((of) => {
    const files = flags.eval ? of.eval : of.train;
    if (flags.eval && files.length === 0)
      throw new RequestError("data.eval", `adapter '${of.name}' has no files of evaluation rows`, "leave out --eval");
    const rows = take(inspectRows(files, of, tokenizer, spec.vocab), wanted);
    if (wanted !== null && rows.length === 0)
      throw new RequestError("data.row", `adapter '${of.name}' has no row ${wanted} in ${files.map(shortPath).join(", ")}`);
    const dataset = wanted === null ? loadDataset(of, tokenizer, spec.vocab, read) : null;
    return { of, rows, dataset };
  });
  const text = flags.json
    ? jsonText(
        told.map(({ of, rows, dataset }) => ({
          adapter: of.name,
          ...(dataset ? countsOf(dataset) : {}),
          rows: rows.map((row) => rowJson(row, tokenizer)),
        })),
        2,
      )
    : told
        .flatMap(({ of, rows, dataset }, i) => [
          ...(i > 0 ? [""] : []),
          ...(dataset ? summaryLines(of, dataset, screen) : [`${of.name}:`]),
          ...rows.flatMap((row, n) => ["", ...rowLines(row, wanted ?? n + 1, tokenizer, flags.ids === true, screen)]),
          "",
          `  ${legend(screen.colour)}`,
        ])
        .join("\n");
  writeStdout(`${text}\n`, { painted: flags.json !== true && screen.colour });
}

function chosen(adapters: readonly AdapterRecipe[], name: string | undefined): readonly AdapterRecipe[] {
  if (name === undefined) return adapters;
  const found = adapters.filter((adapter) => adapter.name === `${name}`);
  if (found.length > 0) return found;
  const names = adapters.map((adapter) => adapter.name);
  const meant = nearest(`${name}`, names);
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

function summaryLines(of: AdapterRecipe, dataset: Dataset, screen: Screen): string[] {
  const { lengths, ...all } = countsOf(dataset);
  const files = of.train.map((file) => basename(file)).join(", ");
  const heldOut = all.eval_rows === 0 ? "" : `, ${count(all.eval_rows)} held out`;
  return [
    `${of.name}: ${count(all.train_rows)} rows of ${visible(files)}${heldOut}`,
    `  tokens   ${count(all.tokens)}, ${count(all.learned_tokens)} of them learned (${percent(all.learned_tokens / all.tokens)})`,
    `  lengths  ${count(lengths.shortest)} to ${count(lengths.longest)}, median ${count(lengths.median)}, 95 % at most ${count(lengths.p95)}; max_length ${count(of.maxLength)}`,
    ...drawHistogram(lengthsOf(dataset.train), screen.width - 11).map((line) => `           ${line}`),
    `  cut      ${count(all.truncated)} rows to max_length`,
    `  dropped  ${count(all.dropped)} rows`,
    ...dataset.notices
      .filter(({ kind }) => kind !== "cut")
      .flatMap((notice) => wrapped(visible(noticeText(notice)), screen.width - 2).map((line) => `  ${line}`)),
  ];
}

function rowLines(row: InspectedRow, n: number, tokenizer: Tokenizer, ids: boolean, { colour }: Screen): string[] {
  const label = row.label === undefined ? "" : `, label ${row.label}`;
  if (row.fault !== null) return [`  row ${n}, ${visible(shortPath(row.place))}: ${visible(row.fault)}`];
  const notices = row.notices.map((notice) => `    ${visible(noticeText(notice))}`);
  const lines = row.sequences.flatMap((sequence) => {
    const { name, ids: all, mask, kept } = sequence;
    const learned = sum(mask.slice(0, kept));
    const cut = kept < all.length ? `, ${count(all.length - kept)} cut off` : "";
    const name_ = row.sequences.length > 1 ? ` ${name}` : "";
    const dropped = row.dropped ? "; dropped" : "";
    const head = `  row ${n}${name_}, ${visible(shortPath(row.place))}: ${count(all.length)} tokens, ${count(learned)} learned${cut}${label}${dropped}`;
    return [head, ...(ids ? idLines(sequence, tokenizer) : drawRuns(runsOf(all, mask, kept, tokenizer.decode), colour))];
  });
  return [...lines, ...notices];
}

/** A line for each token: its place, id, weight in the loss, and text. */
function idLines({ ids, mask, kept }: InspectedSequence, tokenizer: Tokenizer): string[] {
  const right = { align: "right" } as const;
  return table(
    [
      { title: "at", of: (i: number) => `${i}`, ...right },
      { title: "id", of: (i) => `${ids[i]}`, ...right },
      { title: "weight", of: (i) => (i >= kept ? "cut" : `${mask[i]}`), ...right },
      { title: "text", of: (i) => jsonText(tokenizer.decode([ids[i]!])) },
    ],
    [...ids.keys()],
  );
}

const rowJson = ({ place, sequences, label, notices, dropped, fault }: InspectedRow, tokenizer: Tokenizer) => ({
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
    text: runsOf(ids, mask, kept, tokenizer.decode),
  })),
});
