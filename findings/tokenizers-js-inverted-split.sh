#!/usr/bin/env bash
# @huggingface/tokenizers 0.2.0 loses text without an error: a pre-tokenizer Split with "invert": true keeps only what its pattern matches
# ("ab-cd" becomes the tokens of "ab" and "cd"), and "single_word" of an added token is not heard. The Rust tokenizers keep "-" and cut
# "word" out of no other word. Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @huggingface/tokenizers@0.2.0 >/dev/null
cat >run.mjs <<'JS'
import assert from "node:assert";
import { Tokenizer } from "@huggingface/tokenizers";
const flags = { single_word: true, lstrip: false, rstrip: false, normalized: false, special: true };
const load = (pre_tokenizer) =>
  new Tokenizer(
    {
      added_tokens: [{ id: 9, content: "xy", ...flags }],
      normalizer: null,
      pre_tokenizer,
      post_processor: null,
      decoder: null,
      model: { type: "BPE", vocab: { a: 0, b: 1, c: 2, d: 3, "-": 4, x: 5, y: 6 }, merges: [] },
    },
    {},
  );
const split = { type: "Split", pattern: { Regex: "[a-z]+" }, behavior: "Isolated", invert: true };
const inverted = load(split).encode("ab-cd").ids;
const inside = load(null).encode("axyb").ids;
console.log("inverted Split of ab-cd:", inverted, "- single_word xy in axyb:", inside);
assert.deepStrictEqual(inverted, [0, 1, 2, 3]); // right: [0, 1, 4, 2, 3]
assert.deepStrictEqual(inside, [0, 9, 1]); // right: [0, 5, 6, 1]
JS
node run.mjs
