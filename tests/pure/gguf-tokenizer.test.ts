// The tokenizer that a GGUF lists makes the ids that transformers makes with the tokenizer.json that it was listed from.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import type { GgufValue } from "../../src/files/gguf/header.ts";
import { tokenizerFolder } from "../../src/files/tokenizer.ts";
import { FORMATS } from "../helpers/formats.ts";
import { rewriteGguf } from "../helpers/gguf.ts";
import { compareStrings, goldenStrings, STRINGS } from "../helpers/golden-strings.ts";
import { addedTexts, stringsOf } from "../helpers/tokenizer-strings.ts";

const GOLDEN = join(import.meta.dir, "../golden/tokenizers");
const root = mkdtempSync(join(tmpdir(), "mlora-gguf-tokenizer-"));
const before = process.env["MLORA_CACHE"];
beforeAll(() => {
  process.env["MLORA_CACHE"] = join(root, "cache");
});
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  rmSync(root, { recursive: true, force: true });
});

type Added = { readonly id: number; readonly content: string; readonly special: boolean };
type Json = {
  readonly added_tokens: readonly Added[];
  readonly model: { readonly vocab: Readonly<Record<string, number>>; readonly merges: readonly (readonly [string, string])[] };
};

/** What llama.cpp's converter lists of a tokenizer.json; ids that nothing has are padding. */
function listed(folder: string): Record<string, GgufValue> {
  const { added_tokens: added, model }: Json = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
  const config = JSON.parse(readFileSync(join(folder, "tokenizer_config.json"), "utf8"));
  const texts = new Map(Object.entries(model.vocab).map(([text, id]) => [id, text]));
  for (const { id, content } of added) texts.set(id, content);
  const size = Math.max(...texts.keys()) + 3;
  const kinds = new Map(added.map(({ id, special }) => [id, special ? 3 : 4]));
  const ids = Array.from({ length: size }, (_, id) => id);
  const idOf = (text: string | null) => (text === null ? null : [...texts].find(([, of]) => of === text)![0]);
  const named = { bos: idOf(config.bos_token), eos: idOf(config.eos_token) };
  return {
    "tokenizer.ggml.tokens": ids.map((id) => texts.get(id) ?? `[PAD${id}]`),
    "tokenizer.ggml.token_type": ids.map((id) => (texts.has(id) ? (kinds.get(id) ?? 1) : 5)),
    "tokenizer.ggml.merges": model.merges.map((pair) => pair.join(" ")),
    "tokenizer.chat_template": readFileSync(join(folder, "chat_template.jinja"), "utf8"),
    ...(named.bos === null ? {} : { "tokenizer.ggml.bos_token_id": named.bos }),
    "tokenizer.ggml.eos_token_id": named.eos!,
  };
}

let made = 0;
function ggufWith(metadata: Record<string, GgufValue | null>, name = "gguf-llama"): string {
  const folder = mkdtempSync(join(root, "model-"));
  const path = join(folder, `${made++}.gguf`);
  rewriteGguf(join(FORMATS, name, "model.gguf"), path, { metadata });
  return path;
}

const KINDS = [
  ["llama3", "llama-bpe", "gguf-llama"],
  ["qwen3", "qwen2", "gguf-qwen2"],
  ["smollm", "smollm", "gguf-llama"],
] as const;

describe.each(KINDS)("%s", (kind, pre, model) => {
  const folder = join(GOLDEN, kind);
  const original = loadTokenizer(folder);
  const path = () => ggufWith({ ...listed(folder), "tokenizer.ggml.pre": pre }, model);

  test("makes the ids of transformers, and knows the same tokens", () => {
    const tokenizer = loadTokenizer(tokenizerFolder(path()));
    const golden = goldenStrings[`small-${kind}`]!;
    const { added_tokens } = JSON.parse(readFileSync(join(folder, "tokenizer.json"), "utf8"));
    const strings = stringsOf(golden.seed, STRINGS, addedTexts({ added_tokens }));
    expect(compareStrings(strings, golden, tokenizer)).toEqual([]);
    for (const text of strings.slice(0, 300))
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(original.decode(original.encode(text)));
    expect([tokenizer.bos, tokenizer.eos, tokenizer.addBos]).toEqual([original.bos, original.eos, original.addBos]);
    expect(tokenizer.chatTemplate).toBe(original.chatTemplate);
  });

  test("is written once", () => {
    const folders = [path(), path()].map(tokenizerFolder);
    expect(folders[0]).toBe(folders[1]!);
    expect(readdirSync(folders[0]!).sort()).toEqual(["tokenizer.json", "tokenizer_config.json"]);
  });
});

describe("refuses", () => {
  const smollm: Record<string, GgufValue> = { ...listed(join(GOLDEN, "smollm")), "tokenizer.ggml.pre": "smollm" };
  const cases: readonly (readonly [string, Record<string, GgufValue | null>])[] = [
    ["a kind that is a word of JavaScript's", { ...smollm, "tokenizer.ggml.pre": "constructor" }],
    ["another kind", { ...smollm, "tokenizer.ggml.pre": "deepseek-llm" }],
    ["a kind of another architecture", { ...smollm, "tokenizer.ggml.pre": "qwen2" }],
    ["SentencePiece", { ...smollm, "tokenizer.ggml.model": "llama" }],
    [
      "tokens that are bytes",
      { ...smollm, "tokenizer.ggml.token_type": (smollm["tokenizer.ggml.token_type"] as number[]).map(() => 6) },
    ],
    ["types of fewer tokens", { ...smollm, "tokenizer.ggml.token_type": [1, 2] }],
    ["no merges", { ...smollm, "tokenizer.ggml.merges": null }],
  ];
  test.each(cases)("%s", (_, metadata) => {
    expect(() => tokenizerFolder(ggufWith(metadata))).toThrow("tokenizer.json: no such file");
  });
});
