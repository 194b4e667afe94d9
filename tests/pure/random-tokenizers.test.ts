// Tokenizers of random parts, held against the ids that the original tokenizers make with them
// (tests/golden/tokenizers/make_random.py); and files that name special tokens in several places, as AutoTokenizer reads them
// (make_configs.py).

import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { loadTokenizer, type Tokenizer } from "../../src/data/tokenizer.ts";
import configs from "../golden/tokenizers/configs.json";
import golden from "../golden/tokenizers/random.json";

type Parts = { readonly model: { readonly vocab: readonly string[] }; readonly [part: string]: unknown };

/** The tokenizer of a tokenizer.json with these parts, as it stands. */
function tokenizerOf({ model, ...parts }: Parts): Tokenizer {
  const folder = mkdtempSync(join(tmpdir(), "mlora-tokenizer-"));
  try {
    const vocab = Object.fromEntries(model.vocab.map((word, id) => [word, id]));
    writeFileSync(
      join(folder, "tokenizer.json"),
      JSON.stringify({ post_processor: null, decoder: null, ...parts, model: { ...model, vocab } }),
    );
    return loadTokenizer(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe.each(golden.map((of, i) => [i, of] as const))("tokenizer %i", (i, { strings, ids, ...parts }) => {
  const tokenizer = tokenizerOf(parts);
  const named = (of: readonly number[]) => of.map((id) => [id, tokenizer.decode([id])]);

  test("makes the ids that the original makes", () => {
    for (const [at, text] of strings.entries()) expect([text, named(tokenizer.encode(text))]).toEqual([text, named(ids[at]!)]);
  });

  test("places all tokens in order, or none", () => {
    const rng = new Rng(i);
    for (const [at, text] of strings.entries()) {
      const chars = [...text];
      const edge = rng.below(chars.length + 1);
      const pieces = [chars.slice(0, edge).join(""), chars.slice(edge).join("")];
      const { ids: found, places } = tokenizer.encodePieces(pieces);
      expect(found).toEqual(ids[at]!);
      if (!places) continue;
      expect(places.length).toBe(found.length);
      for (const [token, { first, last }] of places.entries()) {
        expect(first).toBeGreaterThanOrEqual(places[token - 1]?.first ?? 0);
        expect(last).toBeGreaterThanOrEqual(first);
        expect(last).toBeLessThan(2);
      }
    }
  });
});

test("what a vocabulary lacks is left out before its neighbours are merged", () => {
  const model = { type: "BPE", unk_token: null, merges: [["a", "b"]], vocab: ["a", "b", "ab"] };
  expect(tokenizerOf({ model }).encode("axb")).toEqual([2]);
  const known = { ...model, unk_token: "?", vocab: [...model.vocab, "?"] };
  expect(tokenizerOf({ model: known }).encode("axb")).toEqual([0, 3, 1]);
});

test("added tokens that the normaliser makes one text of are refused by name", () => {
  const model = { type: "BPE", merges: [], vocab: ["a"] };
  const added_tokens = ["\u00e9", "e\u0301"].map((content, i) => ({ id: i + 1, content, normalized: true, special: false }));
  const made = () => tokenizerOf({ model, added_tokens, normalizer: { type: "NFC" } });
  expect(made).toThrow(/makes one text of its added tokens "\u00e9" and "e\u0301"/);
  expect(tokenizerOf({ model, added_tokens }).encode("e\u0301a\u00e9")).toEqual([2, 0, 1]);
});

const folderOf = (files: Readonly<Record<string, unknown>>): string => {
  const folder = mkdtempSync(join(tmpdir(), "mlora-tokenizer-"));
  for (const [name, value] of Object.entries(files)) writeFileSync(join(folder, name), JSON.stringify(value));
  return folder;
};

test("tokens of added_tokens.json are added in the order of their ids, as AutoTokenizer adds them", () => {
  const model = { type: "BPE", unk_token: null, fuse_unk: false, byte_fallback: false, vocab: { a: 0 }, merges: [] };
  const parts = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null };
  for (const ids of [
    { "<y>": 3, "<x>": 1, "<z>": 2 },
    { "<y>": 9, "<x>": 7, "<z>": 8 }, // which nothing has yet: they follow the vocabulary
  ]) {
    const folder = folderOf({
      ...{ "tokenizer.json": { version: "1.0", added_tokens: [], ...parts, model }, "added_tokens.json": ids },
      "tokenizer_config.json": { tokenizer_class: "PreTrainedTokenizerFast" },
    });
    const tokenizer = loadTokenizer(folder);
    expect(["<x>", "<y>", "<z>a"].map((text) => tokenizer.encode(text))).toEqual([[1], [3], [2, 0]]);
    rmSync(folder, { recursive: true });
  }
});

describe.each(configs.map((of, i) => [i, of] as const))("files %i", (_, { files, strings, ids, bos, eos }) => {
  test("name the added tokens that AutoTokenizer has", () => {
    const folder = folderOf(files);
    try {
      const tokenizer = loadTokenizer(folder);
      expect(strings.map((text) => [text, tokenizer.encode(text)])).toEqual(strings.map((text, i) => [text, ids[i]!]));
      expect([tokenizer.bos, tokenizer.eos]).toEqual([bos, eos]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
