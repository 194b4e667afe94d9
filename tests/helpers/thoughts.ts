// What templates of reasoning models write into answers that have no thoughts.

import type { Tokenizer } from "../../src/data/tokenizer.ts";

/**
 * Qwen 3's template writes an empty think block into answers without thoughts; transformers' mask takes it in, and it is not
 * learned here.
 */
export function withoutEmptyThoughts(ids: readonly number[], mask: readonly number[], tokenizer: Tokenizer): number[] {
  const learned = [...mask];
  const texts = ids.map((id) => tokenizer.decode([id]));
  for (const [i, text] of texts.entries()) {
    if (text !== "<think>" || mask[i] !== 1 || mask[i - 1] === 1) continue;
    let close = i + 1;
    while (texts[close]?.trim() === "") close++;
    if (texts[close] !== "</think>") continue;
    for (let at = i; at <= close || /^\n+$/.test(texts[at] ?? ""); at++) learned[at] = 0; // not an answer's indentation
  }
  return learned;
}
