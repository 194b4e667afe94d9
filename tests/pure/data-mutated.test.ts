// Damaged data and tokenizers: each is read or refused by a RequestError, never by a crash. Seeded, so that a failure comes
// back.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { type DatasetRecipe, loadDataset } from "../../src/data/dataset.ts";
import { loadTokenizer, type Tokenizer } from "../../src/data/tokenizer.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenFolder, goldenKinds, goldenTokenizer } from "../helpers/golden-tokenizers.ts";
import { mutateBytes } from "../helpers/mutate.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-mutated-"));
afterAll(() => rmSync(folder, { recursive: true }));

const VOCAB = 1600;
const recipe = (train: string): DatasetRecipe => ({
  ...PLAIN_RECIPE,
  train: [train],
  evalSplit: 0.2,
  system: "Be brief.",
  maxLength: 64,
});

/** What was refused; nothing but a RequestError may be thrown. */
function refusal(what: string, call: () => void): RequestError | null {
  try {
    call();
    return null;
  } catch (error) {
    if (error instanceof RequestError && error.message.length > 0) return error;
    throw new Error(`${what}: ${error}`, { cause: error });
  }
}

/** The properties of whatever was read. */
function checkRead(path: string, tokenizer: Tokenizer): void {
  const { train, eval: held, counts } = loadDataset(recipe(path), tokenizer, VOCAB);
  expect(train.length).toBeGreaterThan(0);
  expect(train.length + held.length).toBe(counts.rows - counts.dropped);
  for (const { ids, mask } of [...train, ...held]) {
    expect([ids.length, mask[0]]).toEqual([mask.length, 0]);
    expect(ids.length).toBeLessThanOrEqual(64);
    expect(mask.includes(1)).toBe(true);
    expect(ids.every((id) => id >= 0 && id < VOCAB)).toBe(true);
  }
}

const ROWS: Readonly<Record<string, readonly unknown[]>> = {
  chats: Array.from({ length: 8 }, (_, i) => ({
    messages: [
      { role: "user", content: `What is ${i}? é 🙂` },
      { role: "assistant", content: `It is "${i}".\n` },
      { role: "user", content: "And?" },
      { role: "assistant", content: "<think>\nhm\n</think>\n\nNo more." },
    ],
  })),
  pairs: Array.from({ length: 8 }, (_, i) => ({ prompt: `${i} + 1 \\ =`, completion: `${i + 1} \u0085` })),
  alpaca: Array.from({ length: 8 }, (_, i) => ({ instruction: "Add", input: i % 2 ? `${i}` : null, output: `${i}` })),
  texts: Array.from({ length: 8 }, (_, i) => ({ text: `${i} שלום 你好 e\u0301` })),
};

describe.each(goldenKinds)("rows for %s", (kind) => {
  test.each(Object.keys(ROWS))("%s, damaged 60 times", (form) => {
    const tokenizer = goldenTokenizer(kind);
    const whole = Buffer.from(ROWS[form]!.map((row) => `${JSON.stringify(row)}\n`).join(""));
    const rng = new Rng(kind.length, form.length, 11);
    const path = join(folder, "rows.jsonl");
    writeFileSync(path, whole);
    checkRead(path, tokenizer);
    let refused = 0;
    for (let round = 0; round < 60; round++) {
      writeFileSync(path, mutateBytes(whole, rng));
      const error = refusal(`round ${round}`, () => checkRead(path, tokenizer));
      if (error) {
        refused++;
        expect(error.message).toContain(path);
        expect(error.message.split("\n").length).toBeLessThanOrEqual(5);
      }
    }
    expect(refused).toBeGreaterThan(10); // else this damages nothing
  });
});

describe.each(goldenKinds)("the tokenizer of %s", (kind) => {
  test("damaged 60 times", () => {
    const model = join(folder, kind);
    mkdirSync(model);
    cpSync(goldenFolder(kind), model, { recursive: true });
    const rng = new Rng(kind.length, 5);
    let refused = 0;
    for (let round = 0; round < 60; round++) {
      const name = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"][round % 3]!;
      const whole = readFileSync(join(goldenFolder(kind), name));
      writeFileSync(join(model, name), mutateBytes(whole, rng));
      const path = join(folder, "good.jsonl");
      writeFileSync(path, [ROWS["chats"]!, ROWS["pairs"]!][round % 2]!.map((row) => `${JSON.stringify(row)}\n`).join(""));
      const error = refusal(`round ${round}, ${name}`, () => checkRead(path, loadTokenizer(model)));
      if (error) refused++;
      writeFileSync(join(model, name), whole);
    }
    expect(refused).toBeGreaterThan(10);
  });

  test("without its file, or with a folder in its place", () => {
    const model = join(folder, `${kind}-bare`);
    mkdirSync(model);
    expect(refusal("bare", () => void loadTokenizer(model))?.message).toBe(`${join(model, "tokenizer.json")}: no such file`);
    cpSync(goldenFolder(kind), model, { recursive: true });
    rmSync(join(model, "chat_template.jinja"));
    mkdirSync(join(model, "chat_template.jinja"));
    expect(refusal("folder", () => void loadTokenizer(model))?.message).toContain("chat_template.jinja: its chat template");
    rmSync(join(model, "chat_template.jinja"), { recursive: true });
    const others = join(model, "additional_chat_templates");
    writeFileSync(others, "");
    expect(refusal("file", () => void loadTokenizer(model))?.message).toStartWith(`${others}: its chat template`);
    rmSync(others);
    mkdirSync(join(others, "rag.jinja"), { recursive: true });
    expect(refusal("among", () => void loadTokenizer(model))?.message).toContain("rag.jinja: its chat template");
  });
});

test("a tokenizer of another kind says what is supported", () => {
  const model = { type: "Unigram", unk_id: 0, vocab: [["<unk>", 0]] };
  expect(refusal("unigram", () => void goldenTokenizer("llama2", { model }))?.message).toMatch(
    /its model is "Unigram"; supported is "BPE"/,
  );
  const words = { type: "Whitespace" };
  expect(refusal("pre-tokenizer", () => void goldenTokenizer("llama2", { pre_tokenizer: words }))?.message).toMatch(
    /its pre_tokenizer has a step "Whitespace"; supported are Split/,
  );
  const lower = { type: "Lowercase" };
  expect(refusal("normalizer", () => void goldenTokenizer("llama2", { normalizer: lower }))?.message).toMatch(
    /its normalizer has a step "Lowercase"; supported are NFC/,
  );
});
