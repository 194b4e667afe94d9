// From a row's columns to its tokens, and what is reported of them on the way.

import type { RowKind } from "../objectives/definition.ts";
import { rowKindOf } from "../objectives/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { closingOf } from "./answers.ts";
import { renamed, replacedColumns } from "./columns.ts";
import type { DatasetRecipe } from "./dataset.ts";
import type { TokenisedRow } from "./fit-row.ts";
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
import { stringifyJson } from "./json.ts";
import type { Fields, Source } from "./jsonl.ts";
import type { NoticeBook } from "./notices.ts";
import { promptReader } from "./prompts.ts";
import { type TokenRow, tokenise } from "./tokenise.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { unreadKeys } from "./turns.ts";

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
  { losses = [], silenced = [], emptied = [], unended = [], ungenerated = [], marks = [], joined }: TokenRow,
  source: Source,
  book: NoticeBook,
): void {
  for (const { kind, turn, words } of losses) book.add(kind, source, `'${words}'`, turn);
  for (const turn of silenced) book.add("nothing left", source, "", turn);
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
