// From an example to token ids, and which of them are to be learned.

import { RequestError } from "../base/errors.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { renderAnswers, type Span } from "./answers.ts";
import type { Example } from "./format.ts";
import { RowFault } from "./jsonl.ts";
import { type Loss, lossesOf } from "./kept.ts";
import { emptyThoughts } from "./thoughts.ts";
import { type Tokenizer, tokenizerFor } from "./tokenizer.ts";

/** mask[i] = 1: token i is to be predicted from those before it. The first token never is. */
export type TokenRow = {
  readonly ids: number[];
  readonly mask: number[];
  /** The end of a plain prompt has other ids when its completion follows; what differs is learned with the completion. */
  readonly joined?: true;
  /** What the turns of a conversation say and the text does not. */
  readonly losses?: readonly Loss[];
  /** Answers, from 0, of which the template leaves nothing, so that they are read and not learned. */
  readonly silenced?: readonly number[];
  /** Turns, from 0, that the template gives an empty think block which the data does not have. */
  readonly emptied?: readonly number[];
  /** Learned turns, from 0, after which the template puts no token that ends them. */
  readonly unended?: readonly number[];
  /** Learned turns, from 0, of which something is outside of what the template marks as generated, and that. */
  readonly ungenerated?: readonly { readonly turn: number; readonly words: string }[];
  /** Turns, from 0, whose own text holds a special token, and its text. */
  readonly marks?: readonly { readonly turn: number; readonly mark: string }[];
};

/**
 * The ids are those of the whole text, of a plain prompt with its completion, too: no space comes between them that is in
 * neither. What is learned of a completion begins where the ids are no longer those of the prompt alone. Marks that texts bring
 * are not put there twice. Throws a RowFault.
 */
export function tokenise(example: Example, tokenizer: Tokenizer, trainOn: AdapterRecipe["trainOn"]): TokenRow {
  switch (example.kind) {
    case "text":
      return learn(ended(begun(example.text, tokenizer), tokenizer));
    case "pair": {
      if (tokenizer.eos === null)
        throw new RequestError(
          "model.tokenizer",
          "tokenizer_config.json of the base model names no eos_token that its tokenizer knows, so a completion cannot be ended",
          'where the file is missing, the download may be unfinished; else add "eos_token" to it',
        );
      const prompt = begun(example.prompt, tokenizer);
      const ids = ended(begun(wellFormed(example.prompt) + wellFormed(example.completion), tokenizer), tokenizer);
      if (trainOn === "all") return learn(ids);
      let common = 0;
      while (common < prompt.length && common < ids.length - 1 && prompt[common] === ids[common]) common++;
      return { ...learn(ids, (i) => i >= common), ...(common < prompt.length ? { joined: true } : {}) };
    }
    case "chat":
      return tokeniseChat(example, tokenizer, trainOn);
    default:
      return example satisfies never;
  }
}

type ChatExample = Extract<Example, { readonly kind: "chat" }>;

function tokeniseChat(example: ChatExample, given: Tokenizer, trainOn: AdapterRecipe["trainOn"]): TokenRow {
  const tokenizer = tokenizerFor(given, example.variables);
  const { messages, answersFrom, unlearned } = example;
  const { text, answers } = renderAnswers(example, tokenizer);
  const asked = [...messages.keys()].filter((i) => i >= answersFrom && messages[i]!.role === "assistant" && !unlearned.has(i));
  const { losses, silenced } = lossesOf(example, text, new Map(asked.map((turn, i) => [turn, answers[i]!])));
  if (silenced.length === asked.length)
    throw new RowFault("has no answer that the model's chat template writes: nothing of it would be learned");
  const marks = [...messages.entries()].flatMap(([turn, { content, reasoning_content: thoughts = "" }]) => {
    const mark = tokenizer.specialIn(`${content}\n${thoughts}`);
    return mark === null ? [] : [{ turn, mark }];
  });
  const told = { ...(losses.length > 0 ? { losses } : {}), ...(marks.length > 0 ? { marks } : {}) };
  if (trainOn === "all") return { ...learn(...allBut(example, text, tokenizer)), ...told };
  // Of an answer that the template leaves out its end mark alone is there: to learn it were to learn to say nothing.
  const isHeard = (turn: number) => !silenced.includes(turn);
  const turns = asked.filter(isHeard);
  const heard = answers.filter((_, i) => isHeard(asked[i]!));
  // An empty think block that the data does not have is read, as the template has it, and never learned.
  const empty = heard.map((span, i) => emptyThoughts(text, span, messages[turns[i]!]!));
  const spans = heard.map(({ from, to }, i) => ({ from: from + empty[i]!, to }));
  const emptied = turns.filter((_, i) => empty[i]! > 0);
  const isEnded = ({ from, to }: Span) =>
    tokenizer.specials.some((special) => text.slice(from, to).trimEnd().endsWith(special));
  const unended = turns.filter((_, i) => !isEnded(spans[i]!));
  const ungenerated = outside(text, spans, tokenizer.generatedIn(example)).flatMap((words, i) =>
    words === "" ? [] : [{ turn: turns[i]!, words }],
  );
  const { ids, inside } = encodeSpans(text, spans, tokenizer);
  const row = learn(ids, inside);
  const end = row.mask.lastIndexOf(1) + 1; // what follows the last answer teaches nothing
  return {
    ids: ids.slice(0, end),
    mask: row.mask.slice(0, end),
    ...told,
    ...(silenced.length > 0 ? { silenced } : {}),
    ...(emptied.length > 0 ? { emptied } : {}),
    ...(unended.length > 0 ? { unended } : {}),
    ...(ungenerated.length > 0 ? { ungenerated } : {}),
  };
}

/** Of each span what is in none of `marked`, which are in order, trimmed; nothing where none is marked. */
function outside(text: string, spans: readonly Span[], marked: readonly Span[]): string[] {
  if (marked.length === 0) return [];
  return spans.map(({ from, to }) => {
    let left = "";
    let at = from;
    for (const mark of marked) {
      if (mark.to <= at || mark.from >= to) continue;
      left += text.slice(at, Math.max(at, mark.from));
      at = Math.min(to, mark.to);
    }
    return (left + text.slice(at, to)).trim();
  });
}

/** The ids of a text, and which of them are learned where all are but the turns that are context alone. */
function allBut(example: ChatExample, text: string, tokenizer: Tokenizer): [number[], ((i: number) => boolean)?] {
  const { messages, unlearned } = example;
  if (unlearned.size === 0) return [encode(text, tokenizer)];
  const others = new Set([...messages.keys()].filter((i) => !unlearned.has(i)));
  const { answers } = renderAnswers({ ...example, answersFrom: 0, unlearned: others }, tokenizer);
  const { ids, inside } = encodeSpans(text, answers, tokenizer);
  return [ids, (i) => !inside(i)];
}

/** The ids of a text, and whether a token holds something of a span. */
function encodeSpans(text: string, spans: readonly Span[], tokenizer: Tokenizer) {
  const { ids, places } = tokenizer.encodePieces(cut(wellFormed(text), spans));
  if (!places) throw new RowFault("has a text that the tokenizer changes, so that its answers' places cannot be found");
  return { ids, inside: (i: number) => places[i]!.first % 2 === 1 || places[i]!.last > places[i]!.first };
}

/**
 * What a model reads that is to continue: a prompt without its completion, a conversation up to the assistant's next turn, or a
 * text.
 */
export function promptIds(example: Example, tokenizer: Tokenizer): number[] {
  if (example.kind === "chat") return encode(tokenizerFor(tokenizer, example.variables).renderChat(example, true), tokenizer);
  return begun(example.kind === "pair" ? example.prompt : example.text, tokenizer);
}

/** Plain text begins with the model's mark where it is used to that. */
function begun(text: string, tokenizer: Tokenizer): number[] {
  const { addBos, bos } = tokenizer;
  const ids = encode(text, tokenizer);
  return addBos && bos !== null && ids[0] !== bos ? [bos, ...ids] : ids;
}

const ended = (ids: number[], { eos }: Tokenizer): number[] => (eos === null || ids.at(-1) === eos ? ids : [...ids, eos]);

const learn = (ids: number[], target: (index: number) => boolean = () => true): TokenRow => ({
  ids,
  mask: ids.map((_, i) => (i > 0 && target(i) ? 1 : 0)),
});

function encode(text: string, tokenizer: Tokenizer): number[] {
  const ids = tokenizer.encode(wellFormed(text));
  const rare = RARE.exec(text);
  if (rare && !tokenizer.decode(ids).includes(rare[0]))
    throw new RowFault(
      `has the character U+${rare[0].codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}, for which the tokenizer has no token`,
    );
  return ids;
}

/** Characters that some tokenizers have no bytes for, and leave out: controls, and code points that nothing is assigned to. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const RARE = /[\x00-\x08\x0b\x0c\x0e-\x1f\u{40000}-\u{bffff}]/u;

/** JSON can spell half a character ("\ud83d"), which no tokenizer can. */
function wellFormed(text: string): string {
  if (!text.isWellFormed()) throw new RowFault("has half a character (a lone surrogate such as \\ud83d) in its text");
  return text;
}

/** A text in pieces: those of odd number are the spans. */
function cut(text: string, spans: readonly Span[]): string[] {
  const edges = [0, ...spans.flatMap(({ from, to }) => [from, to]), text.length];
  return edges.slice(1).map((edge, i) => text.slice(edges[i]!, edge));
}
