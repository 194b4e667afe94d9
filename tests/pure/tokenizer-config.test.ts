// Settings of a tokenizer of other types than transformers writes: refused by file and key, never taken for settings that are
// not there.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { writeByteTokenizer } from "../helpers/model.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-tokenizer-"));
beforeAll(() => writeByteTokenizer(root));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** What reading comes to with these keys in place of a file's own. */
function changed(file: string, keys: object): string {
  const path = join(root, file);
  const was = file === "special_tokens_map.json" ? "{}" : readFileSync(path, "utf8");
  try {
    writeFileSync(path, JSON.stringify({ ...JSON.parse(was), ...keys }));
    loadTokenizer(root);
    return "read";
  } catch (error) {
    return (error as Error).message;
  } finally {
    writeFileSync(path, was);
  }
}

const NO_FLAG = [0, 1, "true", null, [], {}];
const NO_TEXT = [-1, 0, 0.5, 1e30, true, {}, [null], { a: null }];

test.each([
  ["tokenizer_config.json", "chat_template", [...NO_TEXT, [{ name: "default" }], [{ template: "x" }], ["x"]]],
  ["tokenizer_config.json", "eos_token", [...NO_TEXT, [], { content: 3 }]],
  ["special_tokens_map.json", "bos_token", [...NO_TEXT, []]],
  ["tokenizer_config.json", "pad_token", NO_TEXT],
  ["tokenizer_config.json", "tokenizer_class", [...NO_TEXT, []]],
  ["tokenizer_config.json", "additional_special_tokens", [-1, true, "x", [3], { a: null }]],
  ["tokenizer_config.json", "extra_special_tokens", [-1, "x", [[]]]],
  ["tokenizer_config.json", "added_tokens_decoder", [-1, "x", [], { "3": "x" }, { "4": 5 }]],
  [
    "tokenizer.json",
    "added_tokens",
    [-1, "x", {}, [null], [{ id: 3 }], [{ content: "x" }], [{ id: 0.5, content: "x" }], [{ id: -1, content: "x" }]],
  ],
  ["tokenizer.json", "added_tokens", NO_FLAG.map((value) => [{ id: 5, content: "x", lstrip: value }])],
  ["tokenizer_config.json", "added_tokens_decoder", NO_FLAG.map((value) => ({ "5": { content: "x", special: value } }))],
  ["tokenizer_config.json", "eos_token", NO_FLAG.map((value) => ({ content: "x", normalized: value }))],
] as const)("%s: %s", (file, key, values) => {
  for (const value of values) {
    const text = changed(file, { [key]: value });
    expect(text, JSON.stringify(value)).toContain(`its ${key} is ${JSON.stringify(value)}, expected`);
    expect(text).toContain(join(root, file));
  }
});

test("ids of the vocabulary are rows of the embedding", () => {
  const { model } = JSON.parse(readFileSync(join(root, "tokenizer.json"), "utf8"));
  const [word] = Object.keys(model.vocab).slice(-1);
  for (const id of [1.5, -1, "3", null, [], 2 ** 32, 1e300]) {
    const text = changed("tokenizer.json", { model: { ...model, vocab: { ...model.vocab, [word!]: id } } });
    expect(text).toContain(`its vocabulary has ${JSON.stringify(id)} for ${JSON.stringify(word)}, expected a whole number`);
  }
  expect(changed("tokenizer.json", { model: { ...model, vocab: [["a", 0]], merges: [] } })).toContain(
    "its vocabulary is no object",
  );
});

test("what transformers writes is read: null, texts, objects with a content, templates by name", () => {
  const token = { content: "<|end|>", lstrip: false };
  for (const keys of [
    { chat_template: null, bos_token: null, tokenizer_class: null, additional_special_tokens: null },
    { eos_token: token, extra_special_tokens: { image_token: "<image>" }, additional_special_tokens: [token, "<x>"] },
    { chat_template: [{ name: "tool_use", template: "x" }] },
    { added_tokens_decoder: { "259": { content: "<|system|>", special: true } } },
  ])
    expect(changed("tokenizer_config.json", keys)).toBe("read");
});
