// What ends an answer: the token that training puts after it.

import { endMarks } from "./answers.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** The tokens with which the chat template ends answers; none where there is no template, or it ends them with no token. */
export const chatEnds = (tokenizer: Tokenizer): readonly number[] => [
  ...new Set(
    [tokenizer, tokenizer.toolUse].flatMap((of) =>
      of?.hasChatTemplate ? endMarks(of).flatMap((mark) => tokenizer.encode(mark).slice(-1)) : [],
    ),
  ),
];

/** The tokens that end what adapters are trained to say: those of chats, and eos_token, which ends plain text. */
export function answerEnds(tokenizer: Tokenizer): readonly number[] {
  return [...new Set([...chatEnds(tokenizer), ...(tokenizer.eos === null ? [] : [tokenizer.eos])])];
}

/**
 * The texts of tokens with which answers end in a chat and at which a model does not stop, that stops at `stops`, or at
 * eos_token if at none.
 */
export function unstopped(tokenizer: Tokenizer, stops: readonly number[]): readonly string[] {
  const known = stops.length > 0 ? stops : [tokenizer.eos];
  return chatEnds(tokenizer)
    .filter((id) => !known.includes(id))
    .map((id) => tokenizer.decode([id]));
}
