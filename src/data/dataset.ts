// The rows that an adapter trains on and is measured on: read, tokenised, cut to length and counted.

import { RequestError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import { rangeOfRows, sum } from "../base/shape.ts";
import type { RowKind } from "../objectives/definition.ts";
import { rolloutsOf, rowKindOf } from "../objectives/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { closingOf } from "./answers.ts";
import { renamed, replacedColumns } from "./columns.ts";
import { checkDataFile, type DataFile, type FilesOf, filesNamed } from "./data-file.ts";
import { cachedRows, type FileRows, type TokenCache } from "./file-rows.ts";
import {
  type ChatVariables,
  type Example,
  exampleReader,
  type FormatOptions,
  labelledReader,
  pairedReader,
  paraphrasedReader,
  type SettledForm,
  templateFor,
  unaskedArguments,
  unusedFields,
} from "./format.ts";
import { trainedToo } from "./held-out.ts";
import { stringifyJson } from "./json.ts";
import { type Fields, RowFault, type Source } from "./jsonl.ts";
import { mergedNotices, type Notice, type NoticeBook, type NoticeKind } from "./notices.ts";
import type { ReadingWatch } from "./pack-rows.ts";
import { promptReader } from "./prompts.ts";
import type { RowPool } from "./row-pool.ts";
import { chosenOf, ints, joined, Numbers, type Sample, type Sequence } from "./rows.ts";
import { type TokenRow, tokenise } from "./tokenise.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { unreadKeys } from "./turns.ts";
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

/** Of prompts, the tokens that may follow one. */
const newTokens = (objective: DatasetRecipe["objective"]): number[] => {
  const rollouts = rolloutsOf(objective);
  return rollouts ? [rollouts.maxNewTokens] : [];
};

/**
 * A row's sequences: of preferences the better answer and the other, else `other` is null. Of prompts also the columns of the
 * row as JSON.
 */
export type TokenisedRow = {
  readonly own: TokenRow;
  readonly other: TokenRow | null;
  readonly label?: boolean;
  readonly columns?: string;
};

export const sequencesOf = ({ own, other }: TokenisedRow): readonly TokenRow[] => (other ? [own, other] : [own]);

/** The tokenizer with the chat template that the recipe names, if it names one. */
export const tokenizerOf = ({ chatTemplate }: Pick<AdapterRecipe, "chatTemplate">, tokenizer: Tokenizer): Tokenizer =>
  typeof chatTemplate === "string" ? tokenizer.withChatTemplate(chatTemplate) : tokenizer;

/** How rows of a recipe are read with this tokenizer, which is that of `tokenizerOf`. */
export function formatOptionsOf(
  {
    format,
    columns,
    template,
    system,
    thoughts,
    chatTemplate,
    chatVariables,
  }: Omit<FormatOptions, "asChat" | "chatTemplate" | "toolTemplate"> & Pick<AdapterRecipe, "chatTemplate">,
  tokenizer: Tokenizer,
): FormatOptions {
  const asChat = chatTemplate !== false && tokenizer.hasChatTemplate;
  const templates = { chatTemplate: tokenizer.chatTemplate, toolTemplate: tokenizer.toolUse?.chatTemplate ?? null };
  return { format, columns, template, system, thoughts, chatVariables, asChat, ...templates };
}

/**
 * Reads rows and tells the book what is left out of them. A row is one or, where each turn is trained with its own prompt, as
 * many as it has turns that are learned. Throws a RowFault.
 */
export function rowReader(
  recipe: DatasetRecipe,
  tokenizer: Tokenizer,
  settled: SettledForm = { format: recipe.format },
): (fields: Fields, source: Source, book: NoticeBook) => readonly TokenisedRow[] {
  const { objective, trainOn, thoughts } = recipe;
  const options = formatOptionsOf(recipe, tokenizer);
  const kind = rowKindOf(objective);
  if (kind === "prompt") return askedReader(options, tokenizer, settled);
  const single = exampleReader(options, settled);
  closingOf(tokenizer); // before any row: what it renders may ask for the date, too
  const double = { labelled: labelledReader, paraphrased: paraphrasedReader, paired: pairedReader };
  const read =
    kind === "single" ? (fields: Fields) => ({ own: single(fields), other: null, label: true }) : double[kind](options);
  return (row, source, book) => {
    const fields = renamed(row, options.columns);
    const { own, other, label } = read(fields);
    const tokens = (example: Example): TokenRow => {
      tokenizer.usedDate(); // by a row before
      const row = tokenise(example, tokenizer, trainOn);
      tell(row, source, book);
      if (example.kind === "chat" && tokenizer.usedDate()) book.add("today", source, "");
      return row;
    };
    tellFields(fields, own, kind, kind === "single" ? options : { ...options, format: "auto" }, source, book);
    const idle = idleKeys(recipe, own);
    if (idle.length > 0) book.add("keys", source, idle.join(", "));
    const replaced = replacedColumns(row, options.columns);
    if (replaced.length > 0) book.add("fields", source, replaced.join(", "));
    const labelled = kind === "labelled" ? { label } : {};
    if (thoughts === "every-turn" && kind === "single" && own.kind === "chat")
      return turnByTurn(own).map((example) => ({ own: tokens(example), other: null }));
    return [{ own: tokens(own), other: other && tokens(other), ...labelled }];
  };
}

/** Reads prompts, which have no answer to learn; all columns of a row go to its rewards, so that none of them is left out. */
function askedReader(options: FormatOptions, tokenizer: Tokenizer, settled: SettledForm): ReturnType<typeof rowReader> {
  const read = promptReader({ options, tokenizer }, settled);
  closingOf(tokenizer); // before any row: what it renders may ask for the date, too
  return (row, source, book) => {
    const { ids } = read(row);
    if (options.asChat && tokenizer.usedDate()) book.add("today", source, "");
    const unasked = options.asChat ? unaskedArguments(options.chatVariables, options.chatTemplate) : [];
    if (unasked.length > 0) book.add("template arguments", source, unasked.join(", "));
    return [{ own: { ids: [...ids], mask: ids.map(() => 0) }, other: null, columns: stringifyJson(row)! }];
  };
}

/** Each turn that is learned, with just what the model sees when it writes it. */
function turnByTurn(chat: Extract<Example, { readonly kind: "chat" }>): Example[] {
  const { messages, answersFrom, unlearned } = chat;
  const turns = [...messages.keys()].filter((i) => i >= answersFrom && messages[i]!.role === "assistant" && !unlearned.has(i));
  return turns.map((turn) => ({ ...chat, messages: messages.slice(0, turn + 1), answersFrom: turn, unlearned: new Set() }));
}

function tell(
  { losses = [], emptied = [], unended = [], ungenerated = [], marks = [], joined }: TokenRow,
  source: Source,
  book: NoticeBook,
): void {
  for (const { kind, turn, words } of losses) book.add(kind, source, `'${words}'`, turn);
  for (const turn of emptied) book.add("empty thoughts", source, "", turn);
  for (const turn of unended) book.add("no end", source, "", turn);
  for (const { turn, words } of ungenerated) book.add("generation", source, `'${words}'`, turn);
  for (const { turn, mark } of marks) book.add("marks", source, `'${mark}'`, turn);
  if (joined) book.add("joined prompts", source, "");
}

/** Keys of the recipe that such an example has no use for. */
function idleKeys({ system, chatVariables, thoughts, chatTemplate }: DatasetRecipe, { kind }: Example): string[] {
  if (kind === "chat") return [];
  const given = {
    system: kind === "text" && system !== null,
    chat_template_kwargs: Object.keys(chatVariables).length > 0,
    thoughts: thoughts !== "as-template",
    chat_template: typeof chatTemplate === "string",
  };
  return Object.entries(given).flatMap(([key, isGiven]) => (isGiven ? [key] : []));
}

function tellFields(
  fields: Fields,
  example: Example,
  kind: RowKind,
  options: FormatOptions,
  source: Source,
  book: NoticeBook,
): void {
  const { format, chatVariables } = options;
  const chatTemplate = templateFor(options, example.kind === "chat" ? example.variables : {});
  // what a template of the recipe prints is the recipe's choice
  const unused = format === "template" ? [] : unusedFields(fields, format, kind, example, chatTemplate);
  if (unused.length > 0) book.add("fields", source, unused.join(", "));
  if (example.kind !== "chat") return;
  const own = format === "template" ? {} : (fields["chat_template_kwargs"] as ChatVariables | null);
  const unasked = unaskedArguments({ ...chatVariables, ...own }, chatTemplate);
  if (unasked.length > 0) book.add("template arguments", source, unasked.join(", "));
  for (const [turn, message] of example.messages.entries()) {
    const unread = unreadKeys(message, chatTemplate);
    if (unread.length > 0) book.add("turn keys", source, unread.join(", "), turn);
  }
}

/** A row within max_length; no sample where it is dropped. */
export function fitRow(row: TokenisedRow, source: Source, recipe: DatasetRecipe, book: NoticeBook) {
  const none = { sample: null, cut: false };
  if (row.columns !== undefined) {
    const { ids, mask } = row.own;
    const [follow = 0] = newTokens(recipe.objective);
    if (ids.length + follow <= recipe.maxLength && ids.length > 0)
      return { sample: { ids: Int32Array.from(ids), mask: Uint8Array.from(mask), source, columns: row.columns }, cut: false };
    book.add(ids.length > 0 ? "too long" : "nothing to learn", source, "");
    return none;
  }
  const fitted = sequencesOf(row).map((sequence) => fit(sequence, recipe));
  const dropped = fitted.find(({ dropped }) => dropped !== null)?.dropped;
  if (dropped) {
    book.add(dropped, source, "");
    return none;
  }
  const [own, other] = fitted.map(({ sequence }) => sequence!);
  if (other && rowKindOf(recipe.objective) === "paired" && isSame(own!, other)) {
    book.add("same answers", source, "");
    return none;
  }
  const cut = fitted.some(({ truncated }) => truncated);
  if (cut) book.add("cut", source, "");
  const sample: Sample = {
    ...own!,
    ...(other ? { other } : {}),
    ...(row.label === undefined ? {} : { label: row.label }),
    source,
  };
  return { sample, cut };
}

const isSame = (one: Sequence, other: Sequence): boolean =>
  one.ids.length === other.ids.length && one.ids.every((id, i) => id === other.ids[i]);

/** Throws a RowFault for a token that the model has not. */
export function checkIds(ids: readonly number[], vocab: number): void {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocab));
  if (wrong !== undefined)
    throw new RowFault(`has the token ${wrong}; the model knows ${vocab} (the tokenizer is another model's)`);
}

/** The sequence within max_length, or why there is none. */
export function fit(
  { ids, mask }: Pick<TokenRow, "ids" | "mask">,
  { maxLength, overlong }: Pick<DatasetRecipe, "maxLength" | "overlong">,
) {
  const long = ids.length > maxLength;
  const kept = long ? maxLength : ids.length;
  const dropped: NoticeKind | null =
    long && overlong === "drop" ? "too long" : mask.slice(1, kept).includes(1) ? null : "nothing to learn";
  if (dropped) return { sequence: null, truncated: false, dropped };
  const sequence: Sequence = { ids: new Int32Array(ids.slice(0, kept)), mask: new Uint8Array(mask.slice(0, kept)) };
  return { sequence, truncated: long, dropped };
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
      `${files.join(", ")}: ${first} rows, ${heldOut} held out: none is left for '${name}'`,
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
