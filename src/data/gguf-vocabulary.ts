// A tokenizer as llama.cpp has it: tokens with their types, and for each kind of pre-tokenizer that it knows the name of that
// kind. What it would cut otherwise than training did is refused.

import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import type { GgufKeys } from "../families/gguf.ts";
import type { AddedToken } from "./added-tokens.ts";
import { chatEnds } from "./ends.ts";
import type { Json } from "./pre-tokenise.ts";
import { loadTokenizer, tokenizerParts } from "./tokenizer.ts";

/** By `tokenizer.ggml.pre`, the expression that words are cut by; what it says of digits tells most apart. */
const words = (letters: string, digits: string, others = "[^\\s\\p{L}\\p{N}]", ends = "[\\r\\n]*"): string =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?${letters}|${digits}| ?${others}+${ends}|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const LLAMA3 = words("\\p{L}+", "\\p{N}{1,3}");
const [UPPER, LOWER] = ["[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"];
const cased = (end: string, digits: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?${UPPER}*${LOWER}+${end}|[^\\r\\n\\p{L}\\p{N}]?${UPPER}+${LOWER}*${end}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
const EXPRESSIONS: ReadonlyMap<string, string> = new Map([
  [words("\\p{L}+", "\\p{N}"), "qwen2"],
  [words("[\\p{L}\\p{M}]+", "\\p{N}", "[^\\s\\p{L}\\p{M}\\p{N}]"), "qwen35"],
  [cased("", "\\p{N}"), "tekken"],
  [cased("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}"), "gpt-4o"],
]);

/** ggml's types of tokens. */
const [NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE] = [1, 2, 3, 4, 5, 6] as const;

/**
 * The keys of the tokenizer in `folder` for a model of `vocab` tokens, with the tokens that end what adapters are trained to
 * say. Throws a RequestError, `export.gguf`, for a tokenizer that llama.cpp has no name for.
 */
export function ggufVocabulary(folder: string, vocab: number): GgufKeys {
  const tokenizer = loadTokenizer(folder);
  const { json, added, unknown, padding } = tokenizerParts(folder);
  const model = json["model"] as { vocab: Record<string, number>; merges: unknown[]; ignore_merges?: boolean };
  const kind = kindOf(json, model.ignore_merges === true, join(folder, "tokenizer.json"));
  const isPieces = kind.isPieces;
  const ids = new Map(Object.entries(model.vocab));
  const tokens = Array.from({ length: vocab }, (_, id) => ({ text: `[PAD${id}]`, type: UNUSED as number }));
  const put = (text: string, id: number, type: number) => {
    if (id < vocab) tokens[id] = { text, type };
  };
  for (const [text, id] of ids) put(text, id, isPieces && /^<0x[0-9A-F]{2}>$/.test(text) ? BYTE : NORMAL);
  for (const token of added) put(writtenToken(token), token.id, token.special || looksSpecial(token.content) ? CONTROL : USER);
  if (isPieces && unknown !== null && tokens[unknown]) tokens[unknown].type = UNKNOWN;
  const pairs = model.merges.map((merge) => (typeof merge === "string" ? merge.split(" ", 2) : merge) as [string, string]);
  const key = (name: string) => `tokenizer.ggml.${name}`;
  const id = (name: string, of: number | null | undefined): GgufKeys =>
    of == null ? [] : [[key(`${name}_token_id`), { u32: of }]];
  const [end] = chatEnds(tokenizer);
  return [
    [key("model"), isPieces ? "llama" : "gpt2"],
    [key("pre"), kind.pre],
    [key("tokens"), { strings: tokens.map(({ text }) => text) }],
    ...(isPieces ? ([[key("scores"), { f32s: scoresOf(tokens, pairs, ids) }]] as const) : []),
    [key("token_type"), { i32s: tokens.map(({ type }) => type) }],
    ...(isPieces ? [] : ([[key("merges"), { strings: pairs.map(mergeText) }]] as const)),
    ...id("bos", tokenizer.bos),
    ...id("eos", tokenizer.eos),
    ...id("eot", end === tokenizer.eos ? null : end),
    ...id("unknown", unknown),
    ...id("padding", padding),
    [key("add_bos_token"), tokenizer.addBos],
    [key("add_space_prefix"), kind.addsSpace],
    ...(tokenizer.chatTemplate === null ? [] : ([["tokenizer.chat_template", tokenizer.chatTemplate]] as const)),
    ...toolKeys(tokenizer.toolUse?.chatTemplate ?? null),
  ];
}

/** The template of chats with tools, as llama.cpp's converter names it. */
const toolKeys = (template: string | null): GgufKeys =>
  template === null
    ? []
    : [
        ["tokenizer.chat_templates", { strings: ["tool_use"] }],
        ["tokenizer.chat_template.tool_use", template],
      ];

/** `isPieces`: SentencePiece's BPE, which llama.cpp calls "llama"; otherwise that of bytes, "gpt2". */
type Kind = { readonly isPieces: boolean; readonly pre: string; readonly addsSpace: boolean };

function kindOf(json: Json, ignoresMerges: boolean, path: string): Kind {
  const steps = stepsOf(json["pre_tokenizer"], "pretokenizers");
  const [split, bytes] = steps;
  const last = steps.at(-1);
  const bytesOnly = (step: Json | undefined) => step?.["type"] === "ByteLevel" && step["add_prefix_space"] !== true;
  const named = (pre: string): Kind => ({ isPieces: false, pre, addsSpace: false });
  if (steps.length === 1 && bytesOnly(split) && split!["use_regex"] !== false) return named("gpt-2");
  const isWhole = steps.length === 2 && bytesOnly(last);
  if (isWhole && split!["type"] === "Digits" && split!["individual_digits"] === true && bytes!["use_regex"] !== false)
    return named("smollm");
  if (isWhole && split!["type"] === "Split" && split!["behavior"] === "Isolated" && split!["invert"] !== true) {
    const regex = `${(split!["pattern"] as Json)["Regex"]}`;
    const pre = regex === LLAMA3 ? (ignoresMerges ? "llama-bpe" : "dbrx") : EXPRESSIONS.get(regex);
    if (pre !== undefined && bytes!["use_regex"] === false) return named(pre);
  }
  const pieces = piecesKind(json, steps);
  if (pieces !== null) return pieces;
  throw new RequestError(
    "export.gguf",
    `${path}: llama.cpp has no name for this pre-tokenizer that mlora knows: ${JSON.stringify(json["pre_tokenizer"]).slice(0, 200)}`,
    "leave out --gguf for a Hugging Face folder, which llama.cpp's own converter may take",
  );
}

/** SentencePiece's BPE: spaces are "▁" and belong to words, and there may be one before a text. */
function piecesKind(json: Json, steps: readonly Json[]): Kind | null {
  const kind = (addsSpace: boolean): Kind => ({ isPieces: true, pre: "default", addsSpace });
  if ((json["model"] as Json)["byte_fallback"] !== true) return null;
  const normalisers = stepsOf(json["normalizer"], "normalizers");
  const [one] = steps;
  if (steps.length === 1 && one!["type"] === "Metaspace" && one!["split"] === false && normalisers.length === 0)
    return kind(one!["prepend_scheme"] !== "never");
  const isSpaces = (step: Json) => step["type"] === "Replace" && (step["pattern"] as Json)["String"] === " ";
  const cutsNothing =
    steps.length === 0 || (steps.length === 1 && one!["type"] === "Split" && (one!["pattern"] as Json)["String"] === " ");
  const prepends = normalisers.filter(({ type }) => type === "Prepend").length;
  if (!cutsNothing || !normalisers.every((step) => step["type"] === "Prepend" || isSpaces(step))) return null;
  return normalisers.some(isSpaces) ? kind(prepends > 0) : null;
}

function stepsOf(part: unknown, key: string): readonly Json[] {
  if (part == null) return [];
  const node = part as Json;
  return node["type"] === "Sequence" ? (node[key] as Json[]) : [node];
}

/** As llama.cpp's converter has them: what looks like a mark is one. */
const looksSpecial = (text: string): boolean =>
  /^<[|｜].*[|｜]>$|^<unused.*>$/s.test(text) || ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].includes(text);

const writtenToken = ({ content, special }: AddedToken): string =>
  special || looksSpecial(content) ? content : content.replaceAll("▁", " ");

/** A space within a part, which ends the first one in the file, as the byte's own character. */
const mergeText = (pair: readonly [string, string]): string => pair.map((part) => part.replaceAll(" ", "Ġ")).join(" ");

/**
 * SentencePiece merges the neighbours whose piece has the highest score; as merges are listed by it, minus the place of the
 * first that makes a piece is one.
 */
function scoresOf(
  tokens: readonly { readonly text: string; readonly type: number }[],
  merges: readonly (readonly [string, string])[],
  ids: ReadonlyMap<string, number>,
): number[] {
  const scores = tokens.map(({ type }) => (type === NORMAL ? -merges.length : type === BYTE ? 0 : -1000));
  for (let rank = merges.length - 1; rank >= 0; rank--) {
    const id = ids.get(merges[rank]!.join(""));
    if (id !== undefined && tokens[id]?.type === NORMAL) scores[id] = -rank;
  }
  return scores;
}
