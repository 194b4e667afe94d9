// Merging words into tokens, compared with Hugging Face's package on random vocabularies; and the short way to the places of
// tokens, compared with the walk along the text.

import { expect, test } from "bun:test";
import { BPE } from "@huggingface/tokenizers";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { Bpe, type BpeModel } from "../../src/data/bpe.ts";
import { preTokeniserOf } from "../../src/data/pre-tokenise.ts";
import { placeTokens } from "../../src/data/token-offsets.ts";

const same = (word: string) => word;

/** A vocabulary of a few characters, and of words that merges make of them. */
function randomModel(rng: Rng, options: Partial<BpeModel>): BpeModel {
  const words = [..."abcé😀", ...(options.unk_token ? [options.unk_token] : [])];
  if (options.byte_fallback) words.push(...range(256).map((byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
  const mergeable = [..."abcé😀"];
  const merges: string[][] = [];
  for (let i = 0; i < 40; i++) {
    const pair = [mergeable[rng.below(mergeable.length)]!, mergeable[rng.below(mergeable.length)]!];
    merges.push(pair);
    const made = pair.join("");
    if (!words.includes(made)) words.push(made);
    if (made.length < 9 && !mergeable.includes(made)) mergeable.push(made);
  }
  return { vocab: Object.fromEntries(words.map((word, i) => [word, 3 * i + 1])), merges, ...options };
}

test.each<Partial<BpeModel>>([
  {},
  { ignore_merges: true },
  { unk_token: "<unk>" },
  { unk_token: "<unk>", fuse_unk: true },
  { unk_token: "<unk>", byte_fallback: true, fuse_unk: true },
])("words become the tokens that the package makes of them: %j", (options) => {
  const rng = new Rng(0xb9e);
  for (let round = 0; round < 8; round++) {
    const model = randomModel(rng, options);
    const [own, theirs] = [new Bpe(model, same), new BPE(structuredClone(model) as never)];
    for (let i = 0; i < 120; i++) {
      const alphabet = i % 4 === 0 ? [..."aab"] : [..."abcé😀xß"];
      const word = range(1 + rng.below(i % 10 === 0 ? 400 : 14))
        .map(() => alphabet[rng.below(alphabet.length)]!)
        .join("");
      const { ids, tokens, isSpelt } = own.merged(word);
      // The package merges nothing across characters that it leaves out, where the original (random.json) does.
      const known = options.unk_token ? word : word.replaceAll(/[xß]/g, "");
      expect(tokens, word).toEqual(known === "" ? [] : theirs._call([known]));
      expect(ids).toEqual(tokens.map((token) => model.vocab[token]!));
      expect(isSpelt).toBe(tokens.join("") === word);
      expect(own.merged(word).ids).toEqual(ids);
    }
  }
});

test("tokens lie in the same pieces by the short way as by the walk", () => {
  const { spell } = preTokeniserOf({ type: "ByteLevel", use_regex: false, add_prefix_space: false });
  const rng = new Rng(0x91ace);
  const text = (length: number) => range(length).map(() => [..." abcé😀▁語"][rng.below(8)]!);
  for (let round = 0; round < 200; round++) {
    const chars = text(1 + rng.below(30));
    const cutAll = (of: readonly string[], parts: number): string[] => {
      const edges = range(parts - 1)
        .map(() => rng.below(of.length + 1))
        .sort((a, b) => a - b);
      return [0, ...edges].map((from, i) => of.slice(from, edges[i] ?? of.length).join(""));
    };
    const words = cutAll(chars, 1 + rng.below(6)).filter((word) => word !== "");
    const pieces = cutAll(chars, 1 + rng.below(5));
    const tokens = words.map((word) => cutAll([...spell(word)], 1 + rng.below(4)).filter((token) => token !== ""));
    const place = (isSpelt: boolean) => {
      const merged = words.map((word, i) => ({ tokens: tokens[i]!, length: spell(word).length, isSpelt }));
      const run = { from: 0, to: chars.join("").length, words, merged, isAdded: false };
      return placeTokens([run], pieces, { byteLevel: true, added: new Set() });
    };
    const walked = place(false);
    expect(walked).not.toBeNull();
    expect(place(true)).toEqual(walked);
  }
});
