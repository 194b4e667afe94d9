// Prompts are what training's tokens are before the answer, in every form of a row, with the answer and without.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exampleReader, type FormatOptions } from "../../src/data/format.ts";
import { RowFault } from "../../src/data/jsonl.ts";
import { promptOf, promptReader, splitAnswer } from "../../src/data/prompts.ts";
import { tokenise } from "../../src/data/tokenise.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { writeByteTokenizer } from "../helpers/model.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-prompts-"));
mkdirSync(folder, { recursive: true });
writeByteTokenizer(folder);
afterAll(() => rmSync(folder, { recursive: true }));
const tokenizer = loadTokenizer(folder);
const chat: FormatOptions = {
  format: "auto",
  columns: {},
  template: null,
  system: null,
  thoughts: "as-template",
  chatVariables: {},
  asChat: true,
  toolTemplate: null,
  chatTemplate: tokenizer.chatTemplate,
};
const template = { prompt: "Q: {{ q }}", completion: "{{ a }}" };

const user = { role: "user", content: "Hi" };
const assistant = { role: "assistant", content: "Hello" };
const FORMS: readonly (readonly [string, FormatOptions, Record<string, unknown>, readonly string[], string, string])[] = [
  ["a pair", chat, { prompt: "Hi", completion: "Hello" }, ["completion"], "<|user|>Hi<|end|><|assistant|>", "Hello<|end|>"],
  ["plain text", { ...chat, asChat: false }, { prompt: "Hi", completion: "Hello" }, ["completion"], "Hi", "Hello<|end|>"],
  [
    "a system",
    { ...chat, system: "S" },
    { prompt: "Hi", completion: "A" },
    ["completion"],
    "<|system|>S<|end|><|user|>Hi<|end|><|assistant|>",
    "A<|end|>",
  ],
  [
    "alpaca",
    chat,
    { instruction: "Do", input: "it", output: "Done" },
    ["output"],
    "<|user|>Do\n\nit<|end|><|assistant|>",
    "Done<|end|>",
  ],
  [
    "turns",
    chat,
    { prompt: [user], completion: [assistant] },
    ["completion"],
    "<|user|>Hi<|end|><|assistant|>",
    "Hello<|end|>",
  ],
  [
    "a template",
    { ...chat, format: "template", template },
    { q: "Hi", a: "Hello" },
    ["a"],
    "<|user|>Q: Hi<|end|><|assistant|>",
    "Hello<|end|>",
  ],
];

describe("a row", () => {
  test.each(FORMS)("of %s", (_, options, fields, answer, prompt, expected) => {
    const whole = promptReader({ options: options, tokenizer })(fields);
    expect(tokenizer.decode(whole.ids)).toBe(prompt);
    expect(tokenizer.decode(whole.expected!)).toBe(expected);
    const row = tokenise(exampleReader(options)(fields), tokenizer, "completion");
    expect([...whole.ids, ...whole.expected!]).toEqual(row.ids);
    const open = Object.fromEntries(Object.entries(fields).filter(([name]) => !answer.includes(name)));
    expect(promptReader({ options: options, tokenizer })(open)).toEqual({ ids: whole.ids, expected: null });
  });

  test("of a conversation: up to its last answer, or after its last turn", () => {
    const read = promptReader({ options: chat, tokenizer });
    const messages = [user, assistant, { role: "user", content: "And?" }];
    const open = read({ messages });
    expect(tokenizer.decode(open.ids)).toBe("<|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>And?<|end|><|assistant|>");
    const whole = read({ messages: [...messages, { role: "assistant", content: "Bye" }] });
    expect(whole.ids).toEqual(open.ids);
    expect(tokenizer.decode(whole.expected!)).toBe("Bye<|end|>");
    expect(read({ conversations: [{ from: "human", value: "Hi" }] }).ids).toEqual(read({ messages: [user] }).ids);
    expect(
      read({
        conversations: [
          { from: "human", value: "Hi" },
          { from: "gpt", value: "A" },
        ],
      }).expected,
    ).not.toBeNull();
  });

  test("of a template whose prompt is the same for all", () => {
    const same = { ...chat, format: "template", template: { prompt: "Q", completion: "{{ a }}" } } as const;
    const read = promptReader({ options: same, tokenizer });
    expect(read({ a: "A" }).expected).not.toBeNull();
    expect(read({})).toEqual({ ids: read({ a: "A" }).ids, expected: null });
  });

  test("of text is continued", () => {
    expect(promptReader({ options: { ...chat, format: "text" }, tokenizer })({ text: "Once" })).toEqual({
      ids: tokenizer.encode("Once"),
      expected: null,
    });
  });

  test("that lacks its prompt is reported", () => {
    for (const [options, fields] of [
      [chat, { completion: "A" }],
      [chat, { prompt: " " }],
      [{ ...chat, format: "template", template }, { a: "A" }],
      [chat, { messages: [] }],
    ] as const)
      expect(() => promptReader({ options: options as FormatOptions, tokenizer })(fields as Record<string, unknown>)).toThrow(
        RowFault,
      );
  });
});

test("a prompt by itself is that of a row", () => {
  for (const options of [chat, { ...chat, asChat: false }])
    expect(promptOf("Hi", { options: options, tokenizer })).toEqual(
      promptReader({ options: options, tokenizer })({ prompt: "Hi" }),
    );
});

test("the last run of targets is the answer", () => {
  expect(splitAnswer({ ids: [1, 2, 3, 4, 5, 6], mask: [0, 1, 1, 0, 1, 0] })).toEqual({ ids: [1, 2, 3, 4], expected: [5] });
  expect(splitAnswer({ ids: [1, 2], mask: [0, 0] })).toEqual({ ids: [1, 2], expected: null });
});
