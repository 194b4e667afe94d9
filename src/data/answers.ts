// Where the assistant's turns lie in the text of a conversation: each from behind its header to behind its end mark.
//
// Templates do not say. A turn begins where the conversation before it ends when it is rendered with a generation prompt, and
// ends where the conversation up to it ends. Some templates write a turn in another way once others follow (Qwen 3 leaves out
// its thoughts, Mistral moves the system message); there, an end mark or a rendering with marks for answers shows the place.

import type { Chat, Example } from "./format.ts";
import { RowFault } from "./jsonl.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A piece of text, in characters. */
export type Span = { readonly from: number; readonly to: number };

type Renderer = Pick<Tokenizer, "renderChat" | "specials">;

/** The text of a conversation and the answers in it that are learned, in order. */
export function renderAnswers(
  chat: Extract<Example, { kind: "chat" }>,
  renderer: Renderer,
): { readonly text: string; readonly answers: readonly Span[] } {
  const { messages, answersFrom, unlearned } = chat;
  const text = renderer.renderChat(chat, false);
  const isAnswer = (i: number) => i >= answersFrom && messages[i]!.role === "assistant" && !unlearned.has(i);
  const turns = [...messages.keys()].filter(isAnswer);
  let marked: ReadonlyMap<number, Span> | null = null;
  const byMark = (turn: number): Span | undefined => {
    marked ??= findMarked(chat, turns, text, renderer);
    return marked.get(turn);
  };
  // A template without a generation prompt, or with one always: what it ends with says nothing of the turn's end.
  const endsOpen = renderer.renderChat(chat, true) === text;
  const answers = turns.map((turn) => {
    const before = turn === 0 ? null : attempt({ ...chat, messages: messages.slice(0, turn) }, true, renderer);
    const from = before !== null && text.startsWith(before) ? before.length : byMark(turn)?.from;
    if (from === undefined) throw lost(turn);
    const upTo = attempt({ ...chat, messages: messages.slice(0, turn + 1) }, false, renderer);
    const byPrefix = upTo === null ? null : endAfter(text, from, upTo, renderer.specials);
    const to = endsOpen ? (byMark(turn)?.to ?? byPrefix) : (byPrefix ?? byMark(turn)?.to);
    if (to == null || to <= from) throw lost(turn);
    return { from, to };
  });
  return { text, answers };
}

const lost = (turn: number): RowFault =>
  new RowFault(`has a turn (message ${turn + 1}) that the model's chat template rewrites, so that its place cannot be told`);

/** A part of a conversation; null where the template has none without the rest. */
function attempt(chat: Chat, prompt: boolean, renderer: Renderer): string | null {
  try {
    return renderer.renderChat(chat, prompt);
  } catch (error) {
    if (error instanceof RowFault) return null;
    throw error;
  }
}

/** Where a turn ends that begins at `from`, by the conversation up to it: behind that, or behind the end mark it ends with. */
function endAfter(text: string, from: number, upTo: string, specials: readonly string[]): number | null {
  if (text.startsWith(upTo)) return trimToMark(text, from, upTo.length, specials);
  const closed = upTo.trimEnd();
  const mark = specials.find((special) => closed.endsWith(special));
  const at = mark === undefined ? -1 : text.indexOf(mark, from);
  return at < 0 ? null : at + mark!.length;
}

/** White space behind a turn's end mark is the template's, not the assistant's. */
function trimToMark(text: string, from: number, to: number, specials: readonly string[]): number {
  const kept = text.slice(from, to).trimEnd();
  return specials.some((special) => kept.endsWith(special)) ? from + kept.length : to;
}

/** What stands in an answer's place: characters of private use, which no template knows. */
const markOf = (turn: number): string => `\u{f8fe}${turn}\u{f8ff}`;

/** Turns by their marks; none where the template writes something else when it sees a mark in an answer's place. */
function findMarked(chat: Chat, turns: readonly number[], text: string, renderer: Renderer): Map<number, Span> {
  const { messages } = chat;
  const answers = new Map(turns.map((turn) => [turn, answerOf(messages[turn]!.content)]));
  const marked = messages.map((message, i) => {
    const answer = answers.get(i);
    return answer === undefined ? message : { ...message, content: replaceLast(message.content, answer, markOf(i)) };
  });
  let rest = attempt({ ...chat, messages: marked }, false, renderer) ?? "";
  let rebuilt = "";
  const spans = new Map<number, Span>();
  for (const [turn, answer] of answers) {
    const at = rest.indexOf(markOf(turn));
    if (at < 0) return new Map();
    rebuilt += rest.slice(0, at);
    rest = rest.slice(at + markOf(turn).length);
    const from = rebuilt.length - (rebuilt.endsWith(" ") ? 1 : 0); // a space behind a header is the assistant's to write
    spans.set(turn, { from, to: rebuilt.length + answer.length + endMark(rest, renderer.specials) });
    rebuilt += answer;
  }
  return rebuilt + rest === text ? spans : new Map();
}

/** What an answer says after its thoughts: the part that every template keeps. */
const answerOf = (content: string): string => content.split("</think>").at(-1)!.trim();

function replaceLast(text: string, part: string, by: string): string {
  const at = text.lastIndexOf(part);
  return text.slice(0, at) + by + text.slice(at + part.length);
}

/** Characters of the end mark that follows an answer, a space before it included; 0 for none. */
function endMark(rest: string, specials: readonly string[]): number {
  const space = rest.startsWith(" ") ? 1 : 0;
  const mark = specials.find((special) => rest.startsWith(special, space));
  return mark === undefined ? 0 : space + mark.length;
}
