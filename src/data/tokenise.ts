// From an example to token ids, and which of them are to be learned.

import type { AdapterRecipe } from "../recipe/recipe.ts";
import type { Example, Message } from "./format.ts";
import { RowFault } from "./jsonl.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** mask[i] = 1: token i is to be predicted from those before it. The first token never is. */
export type TokenRow = { readonly ids: number[]; readonly mask: number[] };

/** A piece of text between two characters. */
type Span = { readonly from: number; readonly to: number };

export function tokenise(example: Example, tokenizer: Tokenizer, trainOn: AdapterRecipe["trainOn"]): TokenRow {
  const { bos, eos, addBos } = tokenizer;
  const begin = addBos && bos !== null ? [bos] : [];
  const end = eos === null ? [] : [eos];
  switch (example.kind) {
    case "text":
      return allOf([...begin, ...tokenizer.encode(example.text), ...end]);
    case "pair": {
      // Each by itself, so that the boundary is the same whatever the completion begins with.
      const prompt = [...begin, ...tokenizer.encode(example.prompt)];
      const completion = [...tokenizer.encode(example.completion), ...end];
      if (trainOn === "all") return allOf([...prompt, ...completion]);
      return { ids: [...prompt, ...completion], mask: [...prompt.map(() => 0), ...completion.map(() => 1)] };
    }
    case "chat": {
      const { text, answers } = renderAnswers(example.messages, example.answersFrom, tokenizer);
      const ids = tokenizer.encode(text);
      if (trainOn === "all") return allOf(ids);
      const mask = maskOf(text, ids, answers, tokenizer);
      const last = mask.lastIndexOf(1); // what follows the last answer teaches nothing
      return { ids: ids.slice(0, last + 1), mask: mask.slice(0, last + 1) };
    }
    default:
      return example satisfies never;
  }
}

const allOf = (ids: number[]): TokenRow => ({ ids, mask: ids.map((_, i) => (i === 0 ? 0 : 1)) });

/** A conversation's text, and where in it the assistant's turns lie: each from behind its header to behind its end mark. */
function renderAnswers(messages: readonly Message[], answersFrom: number, tokenizer: Tokenizer) {
  const text = tokenizer.renderChat(messages, false);
  const answers: Span[] = [];
  for (const [i, { role, content }] of messages.entries()) {
    if (role !== "assistant" || i < answersFrom) continue;
    const before = tokenizer.renderChat(messages.slice(0, i), true);
    if (!text.startsWith(before))
      throw new RowFault(`has a turn ${i + 1} before which the model's chat template writes another text than in the whole`);
    const upTo = tokenizer.renderChat(messages.slice(0, i + 1), false);
    const to = text.startsWith(upTo) ? upTo.length : endOf(text, content.trim(), before.length, i);
    answers.push({ from: before.length, to: trimToMark(text, before.length, to, tokenizer.specials) });
  }
  return { text, answers };
}

/** Where a turn ends in a template that writes earlier turns in another way than the last (Qwen 3 leaves out their thoughts). */
function endOf(text: string, content: string, from: number, turn: number): number {
  const at = text.indexOf(content, from);
  if (at < 0) throw new RowFault(`has a turn ${turn + 1} whose text the model's chat template changes`);
  const next = text.indexOf("\n", at + content.length); // its end mark stands on the same line
  return next < 0 ? text.length : next;
}

/** White space behind a turn's end mark is the template's, not the assistant's. */
function trimToMark(text: string, from: number, to: number, specials: readonly string[]): number {
  const kept = text.slice(from, to).trimEnd();
  return specials.some((special) => kept.endsWith(special)) ? from + kept.length : to;
}

/** Marks the tokens that hold any character of the spans. */
function maskOf(text: string, ids: readonly number[], spans: readonly Span[], tokenizer: Tokenizer): number[] {
  const edges = [0, ...spans.flatMap(({ from, to }) => [from, to]), text.length];
  const pieces = edges.slice(1).map((edge, i) => tokenizer.encode(text.slice(edges[i]!, edge)));
  const joined = pieces.flat();
  if (joined.length === ids.length && joined.every((id, i) => id === ids[i]))
    return pieces.flatMap((piece, i) => piece.map(() => (i % 2 === 1 ? 1 : 0)));
  return maskByLength(ids, spans, tokenizer);
}

/** The slow way, for a text whose tokens cross an edge: where each token begins is the length of what those before it spell. */
function maskByLength(ids: readonly number[], spans: readonly Span[], tokenizer: Tokenizer): number[] {
  const starts = ids.map((_, i) => tokenizer.decode(ids.slice(0, i)).length);
  const end = tokenizer.decode(ids).length;
  return ids.map((_, i) => (spans.some(({ from, to }) => starts[i]! < to && (starts[i + 1] ?? end) > from) ? 1 : 0));
}
