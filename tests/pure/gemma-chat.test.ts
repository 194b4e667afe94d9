// What is learned of conversations in Gemma's templates, and the token that ends an answer.

import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { endMarks, renderAnswers } from "../../src/data/answers.ts";
import { goldenFolder, goldenTokenizer, withFolder } from "../helpers/golden-tokenizers.ts";

const FOLDER = join(import.meta.dir, "..", "golden", "jinja");
const TEMPLATES: Readonly<Record<string, string>> = JSON.parse(
  gunzipSync(readFileSync(join(FOLDER, "templates.json.gz"))).toString(),
);
const MARKS = ["<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>"];

/** Llama 2's golden tokenizer, which knows Gemma's marks besides. */
function tokenizer() {
  const { added_tokens: added, model } = JSON.parse(readFileSync(join(goldenFolder("llama2"), "tokenizer.json"), "utf8"));
  const next = Object.keys(model.vocab).length + added.length;
  const marks = MARKS.map((content, i) => {
    return { id: next + i, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  });
  return goldenTokenizer("llama2", { added_tokens: [...added, ...marks] });
}

test.each(Object.keys(TEMPLATES).filter((name) => /^gemma(3|4.*)?$/.test(name)))("%s", (name) => {
  const end = name.startsWith("gemma4") ? "<turn|>" : "<end_of_turn>";
  withFolder((folder) => {
    const file = join(folder, "chat_template.jinja");
    writeFileSync(file, TEMPLATES[name]!);
    const renderer = tokenizer().withChatTemplate(file);
    const messages = ["Hi", " Hello\n", "And?", "Bye"].map((content, i) => {
      return { role: i % 2 === 0 ? "user" : "assistant", content };
    });
    const chat = { kind: "chat", messages, variables: {}, answersFrom: 0, unlearned: new Set<number>() };
    const { text, answers } = renderAnswers(chat as unknown as Parameters<typeof renderAnswers>[0], renderer);
    expect(endMarks(renderer)).toEqual([end]);
    expect(answers.map(({ from, to }) => text.slice(from, to))).toEqual([`Hello${end}`, `Bye${end}`]);
  });
});
