// Models with a chat template of their own for chats with tools (Hermes 3): transformers, and what uses it, take that one.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ggufVocabulary } from "../../src/data/gguf-vocabulary.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { openTextModel } from "../../src/session/generation/text-model.ts";
import { writeByteTokenizer, writeTinyModel } from "../helpers/model.ts";
import { refused } from "../helpers/refused.ts";
import { assistant, learnedOf, lines, rowFiles, textOf, told, user } from "../helpers/rows.ts";

const { load, fileOf } = rowFiles("tool-use");
const root = mkdtempSync(join(tmpdir(), "mlora-tool-use-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A template that writes `mark` first, and after each answer another end than others do. */
const templateOf = (mark: string, end: string, tools = "") =>
  `${mark}${tools}{% for m in messages %}<${"{{ m.role }}"}>{{ m.content }}${end}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
const PLAIN = templateOf("P", "<|end|>");
const TOOLS = templateOf("T", "<|tool_end|>", "{{ tools | tojson }}{{ effort }}");
const OTHER = templateOf("O", "<|end|>");

let folders = 0;
function tokenizerWith(inConfig: unknown, files: Readonly<Record<string, string>> = {}) {
  const folder = join(root, `${folders++}`);
  mkdirSync(folder);
  writeByteTokenizer(folder, ["<|tool_end|>"], inConfig === undefined ? {} : { chat_template: inConfig });
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(join(folder, name, ".."), { recursive: true });
    writeFileSync(join(folder, name), text);
  }
  return { folder, tokenizer: loadTokenizer(folder) };
}

const TOOL = { type: "function", function: { name: "f", parameters: {} } };
const chat = [user("a"), assistant("b"), user("c"), assistant("d")];
const [PLAIN_ROW, TOOL_ROW] = [{ messages: chat }, { messages: chat, tools: [TOOL] }];
const DIRECTORY = "additional_chat_templates";

/** What rows without and with tools begin with, by transformers 5.24's apply_chat_template. */
const CASES: readonly (readonly [string, unknown, Readonly<Record<string, string>>, string, string])[] = [
  ["in tokenizer_config.json", named({ default: PLAIN, tool_use: TOOLS, rag: OTHER }), {}, "P", "T"],
  ["in files", undefined, { "chat_template.jinja": PLAIN, [`${DIRECTORY}/tool_use.jinja`]: TOOLS }, "P", "T"],
  [
    "in files, before those of the settings",
    named({ default: OTHER, tool_use: OTHER }),
    { "chat_template.jinja": PLAIN },
    "P",
    "P",
  ],
  [
    "in files, of which one is called default",
    undefined,
    { [`${DIRECTORY}/default.jinja`]: OTHER, [`${DIRECTORY}/tool_use.jinja`]: TOOLS, "chat_template.jinja": PLAIN },
    "O",
    "T",
  ],
  ["of another name alone", named({ default: PLAIN, rag: OTHER }), {}, "P", "P"],
];

function named(templates: Readonly<Record<string, string>>) {
  return Object.entries(templates).map(([name, template]) => ({ name, template }));
}

test.each(CASES)("%s", (_, inConfig, files, plain, withTools) => {
  const { tokenizer } = tokenizerWith(inConfig, files);
  const { train } = load(lines(PLAIN_ROW, TOOL_ROW, { messages: chat, tools: [] }), {}, tokenizer);
  expect(train.map((row) => textOf(row, tokenizer)[0])).toEqual([plain, withTools, plain]);
});

test("answers end with its mark, arguments and fields that it asks for are used, and a recipe's template goes before both", () => {
  const { tokenizer, folder } = tokenizerWith(named({ default: PLAIN, tool_use: TOOLS }));
  const rows = lines({ ...TOOL_ROW, chat_template_kwargs: { effort: "high" } });
  const dataset = load(rows, {}, tokenizer);
  expect(textOf(dataset.train[0]!, tokenizer)).toStartWith(
    'T[{"type": "function", "function": {"name": "f", "parameters": {}}}]high',
  );
  expect(learnedOf(dataset.train[0]!, tokenizer)).toBe("b<|tool_end|>d<|tool_end|>");
  expect(dataset.notices).toEqual([]);
  const without = load(lines({ ...PLAIN_ROW, chat_template_kwargs: { effort: "high" } }), {}, tokenizer);
  expect(told(without, "template arguments")).toMatchObject({ rows: 1 });
  const own = load(rows, { chatTemplate: fileOf(OTHER, "own.jinja") }, tokenizer);
  expect(textOf(own.train[0]!, tokenizer)[0]).toBe("O");
  expect(told(own, "fields")!.example).toContain("tools");
  // What is asked of it is what it was trained on.
  writeTinyModel(folder);
  writeByteTokenizer(folder, ["<|tool_end|>"], { chat_template: named({ default: PLAIN, tool_use: TOOLS }) });
  const texts = openTextModel(folder);
  expect(texts.decode(texts.chatIds({ messages: [user("a")], tools: [TOOL] }, true))).toMatch(
    /^T\[.*<user>a<\|tool_end\|><assistant>$/,
  );
  expect(texts.decode(texts.chatIds({ messages: [user("a")] }, true))).toBe("P<user>a<|end|><assistant>");
  const stops = [...texts.stops].map((id) => texts.decode([id]));
  expect(stops).toEqual(expect.arrayContaining(["<|end|>", "<|tool_end|>"]));
});

test("without a default chats need tools, as in transformers", () => {
  const { tokenizer } = tokenizerWith(named({ tool_use: TOOLS }));
  expect(textOf(load(lines(TOOL_ROW), {}, tokenizer).train[0]!, tokenizer)[0]).toBe("T");
  expect(refused(() => load(lines(PLAIN_ROW), {}, tokenizer)).message).toContain("no chat template");
});

test("a GGUF has both, by the names of llama.cpp's converter", () => {
  const { folder } = tokenizerWith(named({ default: PLAIN, tool_use: TOOLS }));
  const keys = new Map<string, unknown>(ggufVocabulary(folder, 300));
  expect(keys.get("tokenizer.chat_template")).toBe(PLAIN);
  expect(keys.get("tokenizer.chat_templates")).toEqual({ strings: ["tool_use"] });
  expect(keys.get("tokenizer.chat_template.tool_use")).toBe(TOOLS);
});
