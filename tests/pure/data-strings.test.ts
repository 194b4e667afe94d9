// Ids of 5,000 seeded strings as transformers makes them (tests/golden/tokenizers/make_strings.py), with the tokenizers that
// are here; scripts/tokenizers.ts fetches the rest. And the parts of a tokenizer.json of which other readers lose text.

import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { compareStrings, goldenStrings, STRINGS } from "../helpers/golden-strings.ts";
import { goldenTokenizer, withFolder } from "../helpers/golden-tokenizers.ts";
import { addedTexts, seeded, stringsOf } from "../helpers/tokenizer-strings.ts";

const GOLDEN = join(import.meta.dir, "../golden/tokenizers");
const REAL = join(import.meta.dir, "../../models/SmolLM2-135M-Instruct");
const here: readonly (readonly [string, string])[] = [
  ...["smollm", "llama2", "llama3", "qwen3"].map((kind) => [`small-${kind}`, join(GOLDEN, kind)] as const),
  ...(existsSync(join(REAL, "tokenizer.json")) ? [["smollm2", REAL] as const] : []),
];

describe.each(here)("%s", (name, folder) => {
  const golden = goldenStrings[name]!;
  const { added_tokens } = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
  const strings = stringsOf(golden.seed, STRINGS, addedTexts({ added_tokens }));
  const tokenizer = loadTokenizer(folder);

  test("makes the ids that transformers makes", () => {
    expect(compareStrings(strings, golden, tokenizer)).toEqual([]);
  });

  test("places tokens where their pieces decode to, or not at all", () => {
    const next = seeded(1);
    let placed = 0;
    for (const text of strings.slice(0, 1500)) {
      const chars = [...text];
      const at = Math.floor(next() * (chars.length + 1));
      const pieces = [chars.slice(0, at).join(""), chars.slice(at).join("")];
      const { ids, places } = tokenizer.encodePieces(pieces);
      expect(ids).toEqual(tokenizer.encode(text));
      if (!places) continue;
      placed++;
      expect(places.length).toBe(ids.length);
      // Where no token lies in both, those of the first piece spell it; spaces are also what decoding adds and leaves out.
      if (places.some(({ first, last }) => first !== last) || !/^[ -~]*$/.test(pieces[0]!)) continue;
      const half = ids.filter((_, i) => places[i]!.last === 0);
      expect(tokenizer.decode(half).replaceAll(" ", "")).toBe(pieces[0]!.replaceAll(" ", ""));
    }
    expect(placed).toBeGreaterThan(1200);
  });
});

const words = (kind: string, changes: Record<string, unknown>, text: string, config: Record<string, unknown> = {}) => {
  const tokenizer = goldenTokenizer(kind, changes, null, config);
  return tokenizer.encode(text).map((id) => tokenizer.decode([id]));
};
const split = (behavior: string, invert: boolean, pattern = "-") => ({
  pre_tokenizer: {
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { String: pattern }, behavior, invert },
      { type: "ByteLevel", add_prefix_space: false, use_regex: false },
    ],
  },
});

test.each([
  ["Isolated", false, "abababab"],
  ["Isolated", true, "abababab"],
  ["MergedWithPrevious", true, "abababab"],
])("a Split that is %s, inverted %p, loses no text", (behaviour, invert, text) => {
  const joined = [text, text, text].join("-");
  expect(words("smollm", split(behaviour, invert), joined).join("")).toBe(joined);
});

test("a Split says which behaviours there are", () => {
  expect(() => goldenTokenizer("smollm", split("Sideways", false))).toThrow(
    /Split has a step "Sideways"; supported are Isolated, Removed/,
  );
});

test("added tokens are found by their flags", () => {
  const { added_tokens } = JSON.parse(readFileSync(join(GOLDEN, "smollm/tokenizer.json"), "utf8"));
  const token = (id: number, content: string, flags: object) => ({ id, content, special: true, normalized: false, ...flags });
  const added = [
    ...added_tokens,
    token(1600, "<w>", { single_word: true }),
    token(1601, "<l>", { lstrip: true }),
    token(1602, "<r>", { rstrip: true }),
  ];
  const ids = (text: string) =>
    goldenTokenizer("smollm", { added_tokens: added }, null)
      .encode(text)
      .filter((id) => id >= 1600);
  const encode = (text: string) => goldenTokenizer("smollm", { added_tokens: added }, null).encode(text);
  expect(ids("a<w>")).toEqual([]);
  expect(ids("<w>é")).toEqual([]);
  expect(ids(". <w>.")).toEqual([1600]);
  expect(encode("\u0085\u3000<l>")).toEqual([1601]);
  expect(encode("<r>\u2028 ")).toEqual([1602]);
  expect(encode("\ufeff<l>").length).toBeGreaterThan(1); // a byte order mark is no white space
  expect(encode("<r>\ufeff").length).toBeGreaterThan(1);
});

describe("what transformers builds anew", () => {
  const llama = (modelType: string, config: object) =>
    withFolder((folder) => {
      for (const file of ["tokenizer.json", "tokenizer_config.json"])
        writeFileSync(join(folder, file), readFileSync(join(GOLDEN, "llama2", file)));
      const path = join(folder, "tokenizer_config.json");
      writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...config }));
      writeFileSync(join(folder, "config.json"), JSON.stringify({ model_type: modelType }));
      return loadTokenizer(folder);
    });
  const count = (modelType: string, config: object, text: string) => llama(modelType, config).encode(text).length;

  test("LlamaTokenizer puts no space before a space", () => {
    const alone = count("llama", {}, " a");
    for (const name of ["LlamaTokenizer", "LlamaTokenizerFast"])
      expect(count("llama", { tokenizer_class: name }, " a")).toBe(alone - 1);
    expect(count("llama", { tokenizer_class: "PreTrainedTokenizerFast" }, " a")).toBe(alone);
    expect(count("mistral", { tokenizer_class: "LlamaTokenizer" }, " a")).toBe(alone);
  });

  test("LlamaTokenizer puts a space before a text, and after a special token only where it is legacy", () => {
    const first = (config: object) => llama("llama", { tokenizer_class: "LlamaTokenizer", ...config });
    const [text, turn] = ["a", "</s>a"];
    expect(first({}).encode(turn).slice(1)).not.toEqual(first({}).encode(text));
    expect(first({ legacy: true }).encode(turn).slice(1)).toEqual(first({}).encode(text));
    expect(first({ add_prefix_space: false }).encode(text)).not.toEqual(first({}).encode(text));
  });

  test("add_bos_token is not heard: tokenizer.json says whether a text begins with it", () => {
    expect(llama("llama", { add_bos_token: false }).addBos).toBe(true);
    expect(goldenTokenizer("smollm", {}, null, { add_bos_token: true }).addBos).toBe(false);
  });
});
