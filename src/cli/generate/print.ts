// Prints generated text: for people as it comes, for machines a line of JSON a sequence; in the order of the questions.

import { jsonText, writeGenerated, writeStdout } from "../../base/terminal.ts";
import type { Tokenizer } from "../../data/tokenizer.ts";
import type { GeneratedToken } from "../../session/generate.ts";
import type { Question } from "./request.ts";

/** A question and its answer so far. */
export type Answer = {
  readonly question: Question;
  readonly ids: number[];
  end: GeneratedToken["end"];
};

/**
 * Whether the generated tokens are exactly the known answer, its end mark included, and ended there. Null where
 * none is known.
 */
export const isExact = ({ question: { expected }, ids, end }: Answer): boolean | null =>
  expected && end === "stop" && ids.length === expected.length && expected.every((id, i) => ids[i] === id);

/**
 * The text of an answer, without the token that ended it. An incomplete character at its end is held back while
 * more may follow.
 */
function textOf({ ids, end }: Answer, tokenizer: Tokenizer): string {
  const text = tokenizer.decode(end === "stop" ? ids.slice(0, -1) : ids);
  return end === null ? text.replace(/\ufffd+$/, "") : text;
}

type Writer = { readonly begin: (at: Answer) => void; readonly more: (at: Answer) => void; readonly end: (at: Answer) => void };

/** Prints tokens as they arrive, question by question: always of the first that has not ended. */
export class Printer {
  readonly answers: readonly Answer[];
  readonly #writer: Writer;
  #at = 0;
  #begun = false;

  constructor(questions: readonly Question[], tokenizer: Tokenizer, json: boolean) {
    this.answers = questions.map((question) => ({ question, ids: [], end: null }));
    this.#writer = json ? machines(tokenizer) : people(tokenizer, questions.length > 1);
  }

  take({ index, token, end }: GeneratedToken): void {
    const answer = this.answers[index]!;
    answer.ids.push(token);
    answer.end = end;
    for (let at = this.answers[this.#at]; at && at.ids.length > 0; at = this.answers[this.#at]) {
      if (!this.#begun) this.#writer.begin(at);
      this.#begun = true;
      this.#writer.more(at);
      if (at.end === null) return;
      this.#writer.end(at);
      this.#at++;
      this.#begun = false;
    }
  }
}

function people(tokenizer: Tokenizer, several: boolean): Writer {
  let shown = 0;
  return {
    begin: ({ question }) => {
      shown = 0;
      if (several) writeStdout(`--- ${question.name}: ${oneLine(tokenizer.decode(question.ids))}\n`);
    },
    more: (at) => {
      const text = textOf(at, tokenizer);
      writeGenerated(text.slice(shown));
      shown = Math.max(shown, text.length);
    },
    end: (at) => {
      writeStdout("\n");
      if (isExact(at) === false) writeStdout(`    expected: ${oneLine(tokenizer.decode(at.question.expected!))}\n`);
    },
  };
}

/** The end of a prompt: prompts of one template share their beginning. */
function oneLine(text: string): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 100 ? `...${line.slice(-97)}` : line;
}

function machines(tokenizer: Tokenizer): Writer {
  return {
    begin: () => undefined,
    more: () => undefined,
    end: (at) => {
      const { name, place, ids, expected } = at.question;
      const [prompt, text] = [tokenizer.decode(ids), textOf(at, tokenizer)];
      const known = expected === null ? {} : { expected: tokenizer.decode(expected), exact: isExact(at) };
      writeStdout(`${jsonText({ adapter: name, place, prompt, text, tokens: at.ids.length, end: at.end, ...known })}\n`);
    },
  };
}
