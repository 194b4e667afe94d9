// Prints generated text: for people as it comes, for machines a line of JSON a sequence; in the order of the questions.

import { jsonText, writeGenerated, writeStdout } from "../../base/terminal.ts";
import { type Answer, answerText, isExact, type TextGeneration } from "../../session/generation/text-generation.ts";

type Writer = { readonly more: (at: Answer) => void; readonly end: (at: Answer) => void };

/** Prints tokens as they arrive, question by question: always of the first that has not ended. */
export class Printer {
  readonly #answers: readonly Answer[];
  readonly #writer: Writer;
  #at = 0;

  constructor({ answers, decode }: TextGeneration, json: boolean) {
    this.#answers = answers;
    this.#writer = json ? machines(decode) : people(decode, answers.length > 1);
  }

  /** Called when an answer has got a token. */
  update(): void {
    for (let at = this.#answers[this.#at]; at && at.ids.length > 0; at = this.#answers[this.#at]) {
      this.#writer.more(at);
      if (at.end === null) return;
      this.#writer.end(at);
      this.#at++;
    }
  }
}

type Decode = TextGeneration["decode"];

function people(decode: Decode, several: boolean): Writer {
  let current: Answer | null = null;
  let shown = 0; // characters of it
  return {
    more: (at) => {
      if (at !== current) {
        [current, shown] = [at, 0];
        if (several) writeStdout(`--- ${at.question.name}: ${oneLine(decode(at.question.ids))}\n`);
      }
      const text = answerText(at, decode);
      writeGenerated(text.slice(shown));
      shown = Math.max(shown, text.length);
    },
    end: (at) => {
      writeStdout("\n");
      if (isExact(at) === false) writeStdout(`    expected: ${oneLine(decode(at.question.expected!))}\n`);
    },
  };
}

/** The end of a prompt: prompts of one template share their beginning. */
function oneLine(text: string): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 100 ? `...${line.slice(-97)}` : line;
}

function machines(decode: Decode): Writer {
  return {
    more: () => undefined,
    end: (at) => {
      const { name, place, ids, expected } = at.question;
      const [prompt, text] = [decode(ids), answerText(at, decode)];
      const known = expected === null ? {} : { expected: decode(expected), exact: isExact(at) };
      writeStdout(`${jsonText({ adapter: name, place, prompt, text, tokens: at.ids.length, end: at.end, ...known })}\n`);
    },
  };
}
