// What a reader of rows tells of them, by kind: how many rows and turns, and one example. Nothing is left out without a word.

import { sum } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import { DATE } from "./jinja.ts";
import { clip, placeOf, type Source } from "./jsonl.ts";

export type NoticeKind =
  | "thoughts"
  | "answers"
  | "tool calls"
  | "context"
  | "nothing left"
  | "empty thoughts"
  | "no end"
  | "generation"
  | "fields"
  | "template arguments"
  | "keys"
  | "turn keys"
  | "marks"
  | "too long"
  | "nothing to learn"
  | "same answers"
  | "joined prompts"
  | "held out"
  | "today"
  | "cut";

export type Notice = {
  readonly kind: NoticeKind;
  readonly rows: number;
  readonly turns: number;
  /** "rows.jsonl:3, turn 2: 'the words that are lost'". */
  readonly example: string;
};

/** What each kind is called before its count, and what to do. */
const MEANINGS: Readonly<Record<NoticeKind, readonly [what: string, hint: string]>> = {
  thoughts: [
    "thoughts left out by the chat template",
    'thoughts = "every-turn" trains each turn with the prompt it is written after; "drop" takes all thoughts away',
  ],
  answers: ["words of an answer left out by the chat template", ""],
  "tool calls": ["calls of tools left out or rewritten by the chat template", ""],
  context: ["words that are not answers left out by the chat template", ""],
  "nothing left": ["answers of which the chat template leaves nothing, so that they are not learned", ""],
  "empty thoughts": ["an empty think block added by the chat template, which is read and not learned", ""],
  "no end": [
    "answers that the chat template ends with no token, so that to stop is not learned",
    "name a template that ends them (chat_template)",
  ],
  generation: [
    "parts of answers that are learned and that the chat template does not mark as generated ({% generation %})",
    "an answer is learned up to and with its end mark, whatever a template marks; a turn's weight of 0 leaves it out",
  ],
  fields: ["fields that are not used", ""],
  "template arguments": ["arguments that the chat template does not ask for", ""],
  "turn keys": ["keys of turns that the chat template does not ask for", ""],
  marks: ["turns with special tokens in their text, which are read as these", ""],
  keys: ["keys of the recipe that do nothing for rows without a chat", ""],
  "too long": ["longer than max_length, dropped", "raise max_length"],
  "nothing to learn": ["nothing to learn within max_length, dropped", "raise max_length"],
  "same answers": ["two answers with the same tokens, which teach nothing, dropped", ""],
  "joined prompts": [
    "a prompt whose last token changes when its completion follows",
    "end prompts where a token ends, not in a space",
  ],
  "held out": [
    "held-out rows whose tokens a training row has, too, so that their loss says how well they are remembered",
    "leave them out of one of the two",
  ],
  today: [
    `today's date in the chat template is ${DATE}, so that rows read the same on any day`,
    "chat_template_kwargs = { date_string = ... } gives another",
  ],
  cut: ["cut to max_length", ""],
};

/** A line for people. */
export function noticeText({ kind, rows, turns, example }: Notice): string {
  const [what, hint] = MEANINGS[kind];
  const count = turns > 0 ? `${counted(turns, "turn")} of ${counted(rows, "row")}` : counted(rows, "row");
  return `${what}: ${count} (${example})${hint === "" ? "" : `; ${hint}`}`;
}

/** Counts by kind while rows are read. */
export class NoticeBook {
  readonly #counts = new Map<
    NoticeKind,
    { rows: number; turns: number; example: string; last: Source | null; turn: number | undefined }
  >();

  /**
   * `turn` counts from 0; left out for what a whole row has. A row counts once, however many turns of it are reported, and a
   * turn once, however much of it.
   */
  add(kind: NoticeKind, source: Source, what: string, turn?: number): void {
    const where = `${placeOf(source)}${turn === undefined ? "" : `, turn ${turn + 1}`}`;
    const known = this.#counts.get(kind) ?? {
      rows: 0,
      turns: 0,
      example: what === "" ? where : `${where}: ${clip(what)}`,
      last: null,
      turn: undefined,
    };
    const isSame = known.last === source;
    if (!isSame) known.rows++;
    if (turn !== undefined && !(isSame && known.turn === turn)) known.turns++;
    known.last = source;
    known.turn = turn;
    this.#counts.set(kind, known);
  }

  get notices(): readonly Notice[] {
    return [...this.#counts].map(([kind, { rows, turns, example }]) => ({ kind, rows, turns, example }));
  }
}

/** Those of several files, together. */
export function mergedNotices(all: readonly (readonly Notice[])[]): readonly Notice[] {
  const kinds = Map.groupBy(all.flat(), ({ kind }) => kind);
  return [...kinds].map(([kind, of]) => ({
    kind,
    rows: sum(of.map(({ rows }) => rows)),
    turns: sum(of.map(({ turns }) => turns)),
    example: of[0]!.example,
  }));
}
