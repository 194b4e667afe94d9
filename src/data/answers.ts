// Where the assistant's turns lie in the text of a conversation: each from the end of its header to the end of its end mark.
//
// Templates do not say. Three renderings tell: with marks around what each turn says, of the conversation before a turn (with a
// generation prompt: there the turn begins), and up to it (there it ends). Templates rewrite turns once others follow (Qwen 3
// leaves out thoughts, Mistral moves the system message, Phi 3 ends the whole chat), so no rendering is believed by itself:
// spans must lie in order, hold what their turns say and nothing of what another says.

import type { Chat, Example } from "./format.ts";
import { RowFault } from "./jsonl.ts";
import type { Tokenizer } from "./tokenizer.ts";
import type { Message } from "./turns.ts";

/** A piece of text, in characters. */
export type Span = { readonly from: number; readonly to: number };

type Renderer = Pick<Tokenizer, "renderChat" | "specials">;

/**
 * The text of a conversation and the answers in it that are learned, in order. Throws a RowFault where an answer's place cannot
 * be found.
 */
export function renderAnswers(
  chat: Extract<Example, { kind: "chat" }>,
  renderer: Renderer,
): { readonly text: string; readonly answers: readonly Span[] } {
  const { messages, answersFrom, unlearned } = chat;
  const text = renderer.renderChat(chat, false);
  const isAnswer = (i: number) => i >= answersFrom && messages[i]!.role === "assistant" && !unlearned.has(i);
  const turns = [...messages.keys()].filter(isAnswer);
  const contents = findContents(chat, turns, text, renderer);
  const place: Place = { chat, text, contents, renderer };
  const answers: Span[] = [];
  for (const turn of turns) {
    const from = beginOf(turn, place, answers.at(-1)?.to ?? 0);
    const to = from === null ? null : endOf(turn, from, place);
    if (from === null || to === null || !isSound({ from, to }, turn, place)) throw lost(turn);
    answers.push({ from, to });
  }
  return { text, answers };
}

/**
 * What a template puts after an answer that ends a conversation, plain or a tool's call: special tokens' texts; none where it
 * puts none.
 */
export function endMarks(renderer: Renderer): readonly string[] {
  const call = { type: "function", id: "abcdefghi", function: { name: "f", arguments: {} } };
  const answers = [{ content: "b" }, { content: "", tool_calls: [call] }];
  const ends = answers.flatMap((answer) => {
    const messages = [
      { role: "user", content: "a" },
      { role: "assistant", ...answer },
    ];
    try {
      const chat = { kind: "chat", messages, variables: {}, answersFrom: 0, unlearned: new Set<number>() } as const;
      const { text, answers } = renderAnswers(chat, renderer);
      const end = markBefore(text, answers[0]!.from, answers[0]!.to, renderer.specials);
      return end?.to === answers[0]!.to ? [end.mark] : [];
    } catch (error) {
      if (error instanceof RowFault) return []; // a template that knows no tools, or needs more than these turns
      throw error;
    }
  });
  return [...new Set(ends)];
}

/** What the search for a turn knows. `contents`: where what a turn says lies, for the turns of which that is known. */
type Place = {
  readonly chat: Chat;
  readonly text: string;
  readonly contents: ReadonlyMap<number, Span>;
  readonly renderer: Renderer;
};

const lost = (turn: number): RowFault =>
  new RowFault(`has a turn (message ${turn + 1}) that the model's chat template rewrites, so that its place cannot be found`);

/** A part of a conversation; null where the template has none without the rest. */
function attempt(chat: Chat, prompt: boolean, renderer: Renderer): string | null {
  try {
    return renderer.renderChat(chat, prompt);
  } catch (error) {
    if (error instanceof RowFault) return null;
    throw error;
  }
}

/** Where a turn begins: where the conversation before it ends that asks for it, else where what it says begins. */
function beginOf(turn: number, { chat, text, contents, renderer }: Place, floor: number): number | null {
  const said = contents.get(turn);
  const messages = chat.messages.slice(0, turn);
  const before = turn === 0 ? null : attempt({ ...chat, messages }, true, renderer);
  if (before !== null) {
    const whole = text.startsWith(before);
    const common = whole ? before.length : commonTokens(before, text, renderer.specials);
    const isBehind = whole || common >= endBefore(turn, { chat, text, contents, renderer }); // else they part in another turn
    if (isBehind && common >= floor && common <= (said?.from ?? text.length)) return common;
  }
  if (said === undefined) return null;
  const from = said.from - leadOf(chat.messages[turn]!, text.slice(floor, said.from)).length;
  return from > floor && text[from - 1] === " " ? from - 1 : from; // a space after a header is the assistant's to write
}

/**
 * What stands in the text before what a turn says and is a part of its content: its thoughts, where the template writes them
 * as they are, or the white space that it begins with.
 */
function leadOf(message: Message, before: string): string {
  const { content } = message;
  const thoughts = content.slice(0, content.lastIndexOf(saidIn(message)));
  const space = content.slice(0, content.length - content.trimStart().length);
  return [thoughts, thoughts.trimStart(), space].find((lead) => before.endsWith(lead)) ?? "";
}

/** A place in the text before which no turn but those before this one says anything; infinite where none is known. */
function endBefore(turn: number, { chat, text, contents, renderer }: Place): number {
  const previous = contents.get(turn - 1)?.to;
  if (previous !== undefined) return previous + 1;
  const before = attempt({ ...chat, messages: chat.messages.slice(0, turn) }, false, renderer); // it says nothing, maybe
  return before !== null && text.startsWith(before) ? before.length : Number.POSITIVE_INFINITY;
}

/**
 * Where a turn ends that begins at `from`: after the mark that follows what it says, else where the conversation up to it
 * ends.
 */
function endOf(turn: number, from: number, { chat, text, contents, renderer }: Place): number | null {
  const { specials } = renderer;
  const said = contents.get(turn);
  const spokenTo = said?.to ?? from;
  if (said && !callsTools(chat.messages[turn]!)) {
    const closed = closedAt(text, said.to, renderer);
    if (closed !== null) return closed;
  }
  const next = contents.get(turn + 1)?.from;
  const messages = chat.messages.slice(0, turn + 1);
  const upTo = messages.length === chat.messages.length ? text : attempt({ ...chat, messages }, false, renderer);
  const whole = upTo !== null && text.startsWith(upTo);
  const common = upTo === null ? 0 : whole ? upTo.length : commonTokens(upTo, text, specials);
  // What is written otherwise once others follow ends with the last end mark before what the next turn says.
  const edge = common > spokenTo ? Math.min(common, next ?? common) : (next ?? spokenTo);
  const closing = closingOf(renderer);
  const at = closing === null ? -1 : text.slice(spokenTo, edge).lastIndexOf(closing);
  if (at >= 0) return spokenTo + at + closing!.length;
  if (whole && common === spokenTo && said) return common; // nothing closes the turn
  if (common <= spokenTo) return null;
  return markBefore(text, spokenTo, edge, specials)?.to ?? (whole ? common : null);
}

/**
 * What a template puts after each answer, with white space of its own before it; null where that differs, or is no special
 * token.
 */
const CLOSINGS = new WeakMap<Renderer, string | null>();

export function closingOf(renderer: Renderer): string | null {
  const known = CLOSINGS.get(renderer);
  if (known !== undefined) return known;
  const found = findClosing(renderer);
  CLOSINGS.set(renderer, found);
  return found;
}

function findClosing(renderer: Renderer): string | null {
  const { specials } = renderer;
  const turns = ["user", "assistant", "user"].map((role, i) => ({ role, content: markOf(i) }));
  const behind = (messages: readonly Message[], prompt = false) =>
    attempt({ messages, variables: {} }, prompt, renderer)?.split(markOf(1)).at(1) ?? null;
  const [last, followed] = [behind(turns.slice(0, 2)), behind(turns)];
  if (last === null || followed === null) return null;
  const common = last.slice(0, commonTokens(last, followed, specials));
  let end = markAt(common, 0, specials);
  if (end === null) return null;
  if (last === behind(turns.slice(0, 2), true)) return common.slice(0, end); // the next header stands there, too
  for (let more = specialAt(common, end, specials); more; more = specialAt(common, end, specials)) end += more.length;
  return common.slice(0, end);
}

/** The place after the mark that closes what ends at `at`, white space before it left out of account; null for none. */
function closedAt(text: string, at: number, renderer: Renderer): number | null {
  const closing = closingOf(renderer);
  for (let from = at; closing !== null && from <= text.length; from++) {
    if (text.startsWith(closing, from)) return from + closing.length;
    if (!isSpace(text[from])) break;
  }
  return markAt(text, at, renderer.specials);
}

const callsTools = ({ tool_calls: calls }: Message): boolean => Array.isArray(calls) && calls.length > 0;

/** A span holds what its turn says, and nothing of what another says. */
function isSound({ from, to }: Span, turn: number, { chat, text, contents }: Place): boolean {
  if (to <= from) return false;
  const words = chat.messages[turn]!.content.trim();
  if (!contents.has(turn) && words !== "" && !text.slice(from, to).includes(words) && text.includes(words, from)) return false;
  for (const [i, said] of contents) {
    if (i === turn ? said.from < from || said.to > to : said.from < to && said.to > from) return false;
  }
  return true;
}

const isSpace = (char: string | undefined): boolean => char !== undefined && /\s/.test(char);

const specialAt = (text: string, at: number, specials: readonly string[]): string | undefined =>
  specials.find((special) => text.startsWith(special, at));

/** The place after the special token that stands at `at`, white space before it left out of account; null for none. */
function markAt(text: string, at: number, specials: readonly string[]): number | null {
  for (let from = at; from < text.length; from++) {
    const mark = specialAt(text, from, specials);
    if (mark !== undefined) return from + mark.length;
    if (!isSpace(text[from])) break;
  }
  return null;
}

/** The last special token of a piece of text that ends with it, but for white space: that is the template's. */
function markBefore(text: string, from: number, to: number, specials: readonly string[]): { mark: string; to: number } | null {
  const kept = text.slice(from, to).trimEnd();
  const mark = specials.find((special) => kept.endsWith(special));
  return mark === undefined ? null : { mark, to: from + kept.length };
}

/** Characters that two texts begin with alike, none of a special token that one of them breaks off. */
function commonTokens(one: string, other: string, specials: readonly string[]): number {
  let common = 0;
  while (common < one.length && common < other.length && one[common] === other[common]) common++;
  let cut = common;
  for (const special of specials)
    for (let at = Math.max(0, common - special.length + 1); at < cut; at++)
      if (one.startsWith(special, at) || other.startsWith(special, at)) cut = at;
  return cut;
}

/** What stands in the place of what a turn says: characters of private use, which no template knows, around its number. */
const markOf = (turn: number, mark: number = PRIVATE.to): string =>
  `${String.fromCodePoint(mark)}${turn}${String.fromCodePoint(mark)}`;
const PRIVATE = { from: 0xe000, to: 0xf8ff } as const;

/** One of these characters that the text does not have. */
function markFor(text: string): number {
  let mark: number = PRIVATE.to;
  while (mark > PRIVATE.from && text.includes(String.fromCodePoint(mark))) mark--;
  return mark;
}

/**
 * Where what the turns say lies, without the white space around it. Of all turns where the template writes them as they are,
 * else of the answers, else of none: it writes something else when it sees a mark in a turn's place.
 */
function findContents(chat: Chat, answers: readonly number[], text: string, renderer: Renderer): ReadonlyMap<number, Span> {
  return (
    findMarked(chat, [...chat.messages.keys()], text, renderer) ??
    findMarked(chat, answers, text, renderer) ??
    new Map<number, Span>()
  );
}

function findMarked(chat: Chat, turns: readonly number[], text: string, renderer: Renderer): Map<number, Span> | null {
  const mark = markFor(`${text}${chat.messages.map(({ content }) => content).join("")}`);
  const said = new Map(turns.map((turn) => [turn, saidIn(chat.messages[turn]!)]));
  const messages = chat.messages.map((message, i) => {
    const part = said.get(i);
    return part ? { ...message, content: replaceLast(message.content, part, markOf(i, mark)) } : message;
  });
  const pieces = (attempt({ ...chat, messages }, false, renderer) ?? "").split(
    new RegExp(markOf(0, mark).replace("0", "(\\d+)"), "u"),
  );
  const spans = new Map<number, Span>();
  let rebuilt = pieces[0]!;
  for (let i = 1; i < pieces.length; i += 2) {
    const turn = Number(pieces[i]);
    const part = said.get(turn);
    if (!part || spans.has(turn)) return null;
    spans.set(turn, { from: rebuilt.length, to: rebuilt.length + part.length });
    rebuilt += part + pieces[i + 1]!;
  }
  return rebuilt === text ? spans : null;
}

/** What a turn says after its thoughts, the part that every template keeps; "" where there is no such text. */
const saidIn = ({ role, content }: Message): string =>
  (role === "assistant" ? content.split("</think>").at(-1)! : content).trim();

function replaceLast(text: string, part: string, by: string): string {
  const at = text.lastIndexOf(part);
  return text.slice(0, at) + by + text.slice(at + part.length);
}
