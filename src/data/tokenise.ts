// From an example to token ids, and which of them are to be learned.

import { RequestError } from "../base/errors.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { renderAnswers, type Span } from "./answers.ts";
import type { Example } from "./format.ts";
import { RowFault } from "./jsonl.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** mask[i] = 1: token i is to be predicted from those before it. The first token never is. */
export type TokenRow = {
  readonly ids: number[];
  readonly mask: number[];
  /** The end of a plain prompt has other ids when its completion follows; what differs is learned with the completion. */
  readonly joined?: true;
};

/**
 * The ids are those of the whole text, of a plain prompt with its completion, too: no space comes between them that nobody wrote. What is
 * learned of a completion begins where the ids are no longer those of the prompt alone. Marks that texts bring are not put there twice.
 * Throws a RowFault.
 */
export function tokenise(example: Example, tokenizer: Tokenizer, trainOn: AdapterRecipe["trainOn"]): TokenRow {
  switch (example.kind) {
    case "text":
      return learn(ended(begun(example.text, tokenizer), tokenizer));
    case "pair": {
      if (tokenizer.eos === null)
        throw new RequestError(
          "model.tokenizer",
          "tokenizer_config.json names no eos_token that the tokenizer knows, so a completion cannot be ended",
          'add "eos_token" to it',
        );
      const prompt = begun(example.prompt, tokenizer);
      const ids = ended(begun(wellFormed(example.prompt) + wellFormed(example.completion), tokenizer), tokenizer);
      if (trainOn === "all") return learn(ids);
      let common = 0;
      while (common < prompt.length && common < ids.length - 1 && prompt[common] === ids[common]) common++;
      return { ...learn(ids, (i) => i >= common), ...(common < prompt.length ? { joined: true } : {}) };
    }
    case "chat": {
      const { text, answers } = renderAnswers(example, tokenizer);
      if (trainOn === "all") return learn(encode(text, tokenizer));
      const { ids, places } = tokenizer.encodePieces(cut(wellFormed(text), answers));
      if (!places) throw new RowFault("has a text that the tokenizer changes, so that its answers' places cannot be told");
      const inAnswer = (i: number) => places[i]!.first % 2 === 1 || places[i]!.last > places[i]!.first;
      const row = learn(ids, inAnswer);
      const end = row.mask.lastIndexOf(1) + 1; // what follows the last answer teaches nothing
      return { ids: ids.slice(0, end), mask: row.mask.slice(0, end) };
    }
    default:
      return example satisfies never;
  }
}

/** What a model reads that is to go on: a prompt without its completion, a conversation up to the assistant's next turn, or a text. */
export function promptIds(example: Example, tokenizer: Tokenizer): number[] {
  if (example.kind === "chat") return encode(tokenizer.renderChat(example, true), tokenizer);
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

const encode = (text: string, tokenizer: Tokenizer): number[] => tokenizer.encode(wellFormed(text));

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
