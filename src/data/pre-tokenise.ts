// A tokenizer's normaliser and pre-tokenizer as the original (Rust) tokenizers compute them: what becomes of a text, and into
// which words it is cut before tokens are merged. @huggingface/tokenizers 0.2.0 has these steps too, but drops what an inverted
// Split leaves out, knows two of five behaviours, reads \s, \d and "$" as JavaScript does, and newer characters as Bun does.
// What a tokenizer.json asks for beyond the parts below is refused by name.

import { SplitPreTokenizer } from "@huggingface/tokenizers";
import { asOniguruma, normalForm } from "./unicode.ts";

export type Json = Record<string, unknown>;
export type Normaliser = (text: string) => string;
/** Cuts a piece of text into words; `first`: the piece is the beginning of the whole text. */
type Cut = (piece: string, first: boolean) => string[];
/** `spell` makes of each word what tokens are merged from, and depends on the word alone. */
export type PreTokeniser = { readonly cut: Cut; readonly spell: (word: string) => string };

/** GPT-2's words, which ByteLevel makes where no other expression is given. */
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** Throws an Error that names what is not supported. */
export function normaliserOf(part: unknown): Normaliser {
  if (part === null || part === undefined) return (text) => text;
  const node = part as Json;
  switch (node["type"]) {
    case "Sequence": {
      const steps = ((node["normalizers"] ?? []) as unknown[]).map(normaliserOf);
      return (text) => steps.reduce((current, step) => step(current), text);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = node["type"];
      return (text) => normalForm(form, text);
    }
    case "Prepend":
      return (text) => (text === "" ? "" : String(node["prepend"]) + text);
    case "Replace": {
      const content = String(node["content"] ?? "");
      const cut = splitter(node["pattern"]);
      return (text) => cut(text).reduce((whole, { piece, matched }) => whole + (matched ? content : piece), "");
    }
    default:
      throw unsupported("normalizer", node["type"], "NFC, NFD, NFKC, NFKD, Prepend, Replace");
  }
}

/** Throws an Error that names what is not supported. */
export function preTokeniserOf(part: unknown): PreTokeniser {
  const steps = stepsOf(part);
  const spell = steps.at(-1)?.spell ?? same;
  const cuts = steps.flatMap((step, i): Cut[] => {
    const spelt: Cut[] = i < steps.length - 1 && step.spell !== same ? [(piece) => [step.spell(piece)]] : [];
    return step.cut === uncut ? spelt : [step.cut, ...spelt];
  });
  const [only = uncut] = cuts;
  if (cuts.length < 2) return { cut: only, spell };
  const apply = (words: string[], cut: Cut, first: boolean) => words.flatMap((word, i) => cut(word, first && i === 0));
  return { cut: (piece, first) => cuts.reduce((words, cut) => apply(words, cut, first), [piece]), spell };
}

const same = (word: string): string => word;
const uncut: Cut = (piece) => [piece];

/** The steps in a row. */
function stepsOf(part: unknown): PreTokeniser[] {
  if (part === null || part === undefined) return [];
  const node = part as Json;
  switch (node["type"]) {
    case "Sequence":
      return ((node["pretokenizers"] ?? []) as unknown[]).flatMap(stepsOf);
    case "Split": {
      const invert = node["invert"] === true;
      if (node["behavior"] === "Isolated") return [{ cut: isolate(node["pattern"]), spell: same }];
      const cut = splitter(node["pattern"]);
      const gather = gatherer(node["behavior"]);
      return [
        {
          cut: (piece) => gather(cut(piece).map(({ piece, matched }) => ({ piece, matched: matched !== invert }))),
          spell: same,
        },
      ];
    }
    case "Digits": // all numerals: "½" and "Ⅷ" as well
      return [
        { cut: isolate({ Regex: node["individual_digits"] === true ? "\\p{N}" : "\\p{N}+" }, (text) => text), spell: same },
      ];
    case "ByteLevel": {
      const words: Cut = node["use_regex"] === false ? uncut : isolate({ Regex: GPT2 });
      const prefix = node["add_prefix_space"] !== false;
      const cut: Cut = prefix ? (piece, first) => words(piece.startsWith(" ") ? piece : ` ${piece}`, first) : words;
      return [{ cut, spell: toByteLevel }];
    }
    case "Metaspace":
      return [{ cut: metaspace(node), spell: same }];
    default:
      throw unsupported("pre_tokenizer", node["type"], "Split, Digits, ByteLevel, Metaspace");
  }
}

const unsupported = (part: string, found: unknown, known: string): Error =>
  new Error(`its ${part} has a step ${JSON.stringify(found)}; supported are ${known}`);

function metaspace(node: Json): Cut {
  const mark = String(node["replacement"] ?? "▁");
  const scheme = node["prepend_scheme"] ?? (node["add_prefix_space"] === false ? "never" : "always");
  if (scheme !== "always" && scheme !== "first" && scheme !== "never")
    throw unsupported("Metaspace", scheme, '"always", "first", "never"');
  const cut = splitter({ String: mark });
  const gather = gatherer("MergedWithNext");
  return (piece, first) => {
    const marked = piece.replaceAll(" ", mark);
    const prepends = !marked.startsWith(mark) && (scheme === "always" || (scheme === "first" && first));
    const text = prepends ? mark + marked : marked;
    return node["split"] === false ? [text] : gather(cut(text));
  };
}

type Part = { readonly piece: string; readonly matched: boolean };

/** A match of nothing parts what lies next to it, and is no word. */
const wordsOf = (pieces: string[]): string[] => (pieces.includes("") ? pieces.filter((piece) => piece !== "") : pieces);

/** Cuts a text at every match of a pattern. Texts are compared with `seen` in their place, which has their length. */
function splitter(pattern: unknown, seen: (text: string) => string = asOniguruma): (text: string) => Part[] {
  const compiled = patternOf(pattern);
  return (text) => {
    const parts: Part[] = [];
    let end = 0;
    for (const match of seen(text).matchAll(compiled)) {
      if (match[0] === "" && match.index === end && parts.length > 0) continue; // right after a match is no other
      if (match.index > end) parts.push({ piece: text.slice(end, match.index), matched: false });
      end = match.index + match[0].length;
      parts.push({ piece: text.slice(match.index, end), matched: true });
    }
    if (end < text.length) parts.push({ piece: text.slice(end), matched: false });
    return parts;
  };
}

function patternOf(pattern: unknown): RegExp {
  const { String: literal, Regex: regex } = (pattern ?? {}) as { String?: unknown; Regex?: unknown };
  return typeof literal === "string" ? new RegExp(RegExp.escape(literal), "gu") : compile(regex);
}

/** The package translates Oniguruma's words into JavaScript's. */
function compile(regex: unknown): RegExp {
  if (typeof regex !== "string") throw new Error("it has a pattern that is neither String nor Regex");
  const { pattern } = new SplitPreTokenizer({ type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false });
  if (!pattern) throw new Error(`its pattern ${JSON.stringify(regex)} cannot be read`);
  return pattern;
}

/** Every match is a word, and so is what lies between two. */
function isolate(pattern: unknown, seen: (text: string) => string = asOniguruma): Cut {
  const cut = splitter(pattern, seen);
  const compiled = patternOf(pattern);
  return (piece) => {
    // Where nothing lies between two matches they are all there is to it, and found without an object for each.
    const text = seen(piece);
    const matches = text === piece ? text.match(compiled) : null;
    let length = 0;
    for (const match of matches ?? []) length += match.length || Number.NaN; // an empty one is no word
    return matches && length === piece.length ? matches : wordsOf(cut(piece).map((part) => part.piece));
  };
}

/** What becomes of matches: the five behaviours of a Split. */
function gatherer(behaviour: unknown): (parts: Part[]) => string[] {
  const texts = (parts: Part[]) => wordsOf(parts.map(({ piece }) => piece));
  /** Joins a part to the one before it where `joins` says so; both flags are those of the parts as they were cut. */
  const joined = (parts: Part[], joins: (matched: boolean, before: boolean) => boolean) => {
    const words: string[] = [];
    let before = false;
    for (const { piece, matched } of parts) {
      if (words.length > 0 && joins(matched, before)) words.push(words.pop() + piece);
      else words.push(piece);
      before = matched;
    }
    return wordsOf(words);
  };
  switch (behaviour) {
    case "Isolated":
      return texts;
    case "Removed":
      return (parts) => texts(parts.filter(({ matched }) => !matched));
    case "Contiguous":
      return (parts) => joined(parts, (matched, before) => matched === before);
    case "MergedWithPrevious":
      return (parts) => joined(parts, (matched, before) => matched && !before);
    case "MergedWithNext":
      return (parts) => mergedWithNext(parts);
    default:
      throw unsupported("Split", behaviour, "Isolated, Removed, Contiguous, MergedWithPrevious, MergedWithNext");
  }
}

/** From the end, as the original goes: of several matches in a row the last one joins what follows. */
function mergedWithNext(parts: Part[]): string[] {
  const words: string[] = [];
  let behind = false;
  for (const { piece, matched } of parts.toReversed()) {
    if (words.length > 0 && matched && !behind) words.push(piece + words.pop());
    else words.push(piece);
    behind = matched;
  }
  return wordsOf(words.reverse());
}

/** GPT-2's alphabet: a character for each byte. */
const CHAR_OF_BYTE: readonly string[] = (() => {
  const visible = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let hidden = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : hidden++));
})();

const utf8 = new TextEncoder();
const PLAIN = /^[!-~]*$/;

function toByteLevel(word: string): string {
  if (PLAIN.test(word)) return word;
  let spelt = "";
  for (const byte of utf8.encode(word)) spelt += CHAR_OF_BYTE[byte];
  return spelt;
}
