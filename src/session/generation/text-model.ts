// A base model's texts for programs that take requests one by one: conversations and plain prompts to ids, and back.

import { RequestError } from "../../base/errors.ts";
import { answerEnds } from "../../data/ends.ts";
import { parseJson } from "../../data/json.ts";
import { type Fields, RowFault } from "../../data/jsonl.ts";
import { forTemplate } from "../../data/thoughts.ts";
import { promptIds } from "../../data/tokenise.ts";
import { loadTokenizer, tokenizerFor } from "../../data/tokenizer.ts";
import { turnsOf } from "../../data/turns.ts";
import { variablesOf } from "../../data/variables.ts";
import { readModelConfig } from "../../files/config.ts";
import { stopTokens } from "../../files/generation.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";

/** JSON as rows of training are read: 1.0 stays a float, whole numbers keep their digits, keys their order. */
export const exactJson = parseJson;

export type TextModel = {
  readonly hasChatTemplate: boolean;
  /**
   * Ids of `messages` in the chat template, with `tools` and `chat_template_kwargs`; with `isOpen` up to where the assistant's
   * next turn begins. Throws a RequestError, `text.messages`.
   */
  readonly chatIds: (fields: Fields, isOpen: boolean) => readonly number[];
  /** Ids of a plain text, as training reads it. Throws a RequestError, `text.prompt`. */
  readonly textIds: (text: string) => readonly number[];
  readonly decode: (ids: readonly number[]) => string;
  /** Tokens that end an answer. */
  readonly stops: ReadonlySet<number>;
  /** Where the files of the tokenizer are. */
  readonly folder: string;
};

/** A person's prompt as ids: a conversation where the model has a chat template. Throws RequestErrors. */
export const promptOf = (texts: TextModel, prompt: string): readonly number[] =>
  texts.hasChatTemplate ? texts.chatIds({ messages: [{ role: "user", content: prompt }] }, true) : texts.textIds(prompt);

/** Reads the tokenizer and the ends of the model in `folder`. Throws RequestErrors. */
export function openTextModel(folder: string): TextModel {
  readModelConfig(folder); // an adapter's folder has no tokenizer either: the error is about what it is
  const tokenizer = loadTokenizer(tokenizerFolder(folder));
  const { hasChatTemplate } = tokenizer;
  const reading = <T>(code: string, what: string, read: () => T): T => {
    try {
      return read();
    } catch (error) {
      if (!(error instanceof RowFault)) throw error;
      throw new RequestError(code, `${what} ${error.message}`);
    }
  };
  return {
    folder: tokenizerFolder(folder),
    hasChatTemplate,
    chatIds: (fields, isOpen) =>
      reading("text.messages", "the request", () => {
        const turns = turnsOf(fields, "messages").map(({ message }) => message);
        const variables = variablesOf(fields, {});
        const own = tokenizerFor(tokenizer, variables);
        const chat = { messages: forTemplate(turns, own.chatTemplate), variables };
        if (!isOpen) return tokenizer.encode(own.renderChat(chat, false));
        return promptIds({ kind: "chat", ...chat, answersFrom: 0, unlearned: new Set() }, tokenizer);
      }),
    textIds: (text) => reading("text.prompt", "the prompt", () => promptIds({ kind: "text", text }, tokenizer)),
    decode: tokenizer.decode,
    stops: new Set([...stopTokens(folder), ...answerEnds(tokenizer)]),
  };
}
