// What becomes of rows of each form: ids and targets, cut and dropped rows, held-out rows, and the faults that are reported.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Dataset, type DatasetRecipe, loadDataset, type ReadFiles, type Sample } from "../../src/data/dataset.ts";
import type { Tokenizer } from "../../src/data/tokenizer.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenTokenizer } from "../helpers/golden-tokenizers.ts";
import { refused } from "../helpers/refused.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-rows-"));
afterAll(() => rmSync(folder, { recursive: true }));

let files = 0;
function file(content: string | Uint8Array): string {
  const path = join(folder, `${++files}.jsonl`);
  writeFileSync(path, content);
  return path;
}
const lines = (...rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

const llama2 = goldenTokenizer("llama2");
const smollm = goldenTokenizer("smollm");
const VOCAB = 1600;

const recipe = (train: string, changes: Partial<DatasetRecipe> = {}): DatasetRecipe => ({
  ...PLAIN_RECIPE,
  train: [train],
  maxLength: 512,
  ...changes,
});
const load = (content: string | Uint8Array, changes: Partial<DatasetRecipe> = {}, tokenizer: Tokenizer = smollm): Dataset =>
  loadDataset(recipe(file(content), changes), tokenizer, VOCAB);

/** What a sample says, and in it what is learned. */
const textOf = (sample: Sample, tokenizer: Tokenizer) => tokenizer.decode([...sample.ids]);
const learned = (sample: Sample, tokenizer: Tokenizer) =>
  tokenizer.decode([...sample.ids].filter((_, i) => sample.mask[i] === 1));
const said = (dataset: Dataset, tokenizer: Tokenizer = smollm) =>
  dataset.train.map((sample) => [textOf(sample, tokenizer), learned(sample, tokenizer)]);

const HEAD = "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n";
const chat = (user: string, assistant: string) =>
  `<|im_start|>user\n${user}<|im_end|>\n<|im_start|>assistant\n${assistant}<|im_end|>`;

describe("forms", () => {
  const hi = [
    { role: "user", content: "Hi" },
    { role: "assistant", content: "Hello!" },
  ];

  test("messages: every turn of the assistant is learned, with its end", () => {
    const dataset = load(
      lines({ messages: [...hi, { role: "user", content: "Bye" }, { role: "assistant", content: "See you" }] }),
    );
    expect(said(dataset)).toEqual([
      [`${HEAD}${chat("Hi", "Hello!")}\n${chat("Bye", "See you")}`, "Hello!<|im_end|>See you<|im_end|>"],
    ]);
    expect(dataset.train[0]!.source.line).toBe(1);
  });

  test("conversations in ShareGPT's words are the same", () => {
    const shareGpt = {
      conversations: [
        { from: "human", value: "Hi" },
        { from: "gpt", value: "Hello!" },
      ],
    };
    expect(load(lines(shareGpt)).train[0]!.ids).toEqual(load(lines({ messages: hi })).train[0]!.ids);
    expect(load(lines({ conversations: hi })).train[0]!.ids).toEqual(load(lines({ messages: hi })).train[0]!.ids);
  });

  test("the recipe's system message is put before chats that have none", () => {
    const own = [{ role: "system", content: "Sing." }, ...hi];
    const dataset = load(lines({ messages: hi }, { messages: own }), { system: "Be brief." });
    expect(said(dataset).map(([text]) => text)).toEqual([
      `<|im_start|>system\nBe brief.<|im_end|>\n${chat("Hi", "Hello!")}`,
      `<|im_start|>system\nSing.<|im_end|>\n${chat("Hi", "Hello!")}`,
    ]);
  });

  test("prompt and completion are a user's and an assistant's turn where the model has a chat template", () => {
    const [[text, target]] = said(load(lines({ prompt: "1+1", completion: "2" }))) as [[string, string]];
    expect([text, target]).toEqual([`${HEAD}${chat("1+1", "2")}`, "2<|im_end|>"]);
  });

  test("prompt and completion as plain text: begun as the model begins, ended, and cut where the completion begins", () => {
    const rows = lines({ prompt: "Q: 1+1\nA:", completion: " 2" });
    const [sample] = load(rows, { chatTemplate: false }, llama2).train;
    const [prompt, whole] = [llama2.encode("Q: 1+1\nA:"), llama2.encode("Q: 1+1\nA: 2")];
    expect(whole.slice(0, prompt.length)).toEqual(prompt);
    expect([...sample!.ids]).toEqual([llama2.bos!, ...whole, llama2.eos!]);
    expect([...sample!.mask]).toEqual([0, ...whole.map((_, i) => (i < prompt.length ? 0 : 1)), 1]);
    const [noBos] = load(rows, { chatTemplate: false }, smollm).train;
    expect([...noBos!.ids]).toEqual([...smollm.encode("Q: 1+1\nA:"), ...smollm.encode(" 2"), smollm.eos!]);
  });

  test("prompt and completion as lists of turns: only the completion's answers are learned", () => {
    const row = { prompt: [...hi, { role: "user", content: "Bye" }], completion: [{ role: "assistant", content: "See you" }] };
    for (const system of [null, "Be brief."]) expect(said(load(lines(row), { system }))[0]![1]).toBe("See you<|im_end|>");
  });

  test("text: every token but the first is learned", () => {
    const [sample] = load(lines({ text: "Once upon a time" }), {}, llama2).train;
    expect([...sample!.ids]).toEqual([llama2.bos!, ...llama2.encode("Once upon a time"), llama2.eos!]);
    expect([...sample!.mask]).toEqual([...sample!.ids].map((_, i) => (i === 0 ? 0 : 1)));
  });

  test("Alpaca as plain text is Stanford's", () => {
    const about = "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd";
    const rows = lines({ instruction: "Add", input: "1 2", output: "3" }, { instruction: "Add", input: "", output: "3" });
    expect(said(load(rows, { chatTemplate: false }))).toEqual([
      [
        `Below is an instruction that describes a task, paired with an input that provides further context. ${about}\n\n### Input:\n1 2\n\n### Response:\n3<|im_end|>`,
        "3<|im_end|>",
      ],
      [`Below is an instruction that describes a task. ${about}\n\n### Response:\n3<|im_end|>`, "3<|im_end|>"],
    ]);
  });

  test("Alpaca as a chat is instruction and input, then output", () => {
    const rows = lines({ instruction: "Add", input: "1 2", output: "3" }, { instruction: "Add", output: "3" });
    expect(said(load(rows)).map(([text]) => text)).toEqual([HEAD + chat("Add\n\n1 2", "3"), HEAD + chat("Add", "3")]);
  });

  test("a template makes a prompt and a completion of any fields, also of one named as a function of Jinja", () => {
    const template = { prompt: "{{ q.text }}{% if hint %} ({{ hint }}){% endif %}", completion: "{{ a | upper }}" };
    const rows = lines({ q: { text: "2+2" }, a: "four", range: 1 }, { q: { text: "2+3" }, a: "five", hint: "odd" });
    expect(said(load(rows, { format: "template", template })).map(([text]) => text)).toEqual([
      HEAD + chat("2+2", "FOUR"),
      HEAD + chat("2+3 (odd)", "FIVE"),
    ]);
  });

  test("train_on all: every token but the first, of a chat and of a pair", () => {
    const chats = load(lines({ messages: hi }), { trainOn: "all" }).train;
    const pairs = load(lines({ prompt: "a", completion: "b" }), { trainOn: "all", chatTemplate: false }).train;
    for (const { mask } of [...chats, ...pairs]) expect([...mask]).toEqual([...mask].map((_, i) => (i === 0 ? 0 : 1)));
  });

  test("tool calls reach the template; their turn is learned", () => {
    const call = { type: "function", function: { name: "add", arguments: { a: 1 } } };
    const messages = [
      { role: "user", content: "1+1?" },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", content: "2" },
      { role: "assistant", content: "Two." },
    ];
    const qwen = goldenTokenizer("qwen3");
    const [sample] = load(lines({ messages }), {}, qwen).train;
    expect(learned(sample!, qwen)).toBe(
      // the template's empty think block is read, not learned
      '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>Two.<|im_end|>',
    );
  });
});

describe("length", () => {
  const rows = lines({ text: "one two three four five six seven eight" }, { text: "short" });

  test("a row above max_length is cut to it, or dropped, and counted", () => {
    const whole = load(rows);
    expect(whole.counts).toEqual({ rows: 2, truncated: 0, dropped: 0 });
    const maxLength = whole.train[0]!.ids.length - 1;
    const cut = load(rows, { maxLength });
    expect(cut.counts).toEqual({ rows: 2, truncated: 1, dropped: 0 });
    expect([...cut.train[0]!.ids]).toEqual([...whole.train[0]!.ids].slice(0, maxLength));
    expect(cut.train[0]!.mask.length).toBe(maxLength);
    const dropped = load(rows, { maxLength, overlong: "drop" });
    expect(dropped.counts).toEqual({ rows: 2, truncated: 0, dropped: 1 });
    expect(dropped.train.map(({ source }) => source.line)).toEqual([2]);
    expect(load(rows, { maxLength: maxLength + 1 }).counts.truncated).toBe(0);
  });

  test("a row whose answer is cut away is dropped, not kept without targets", () => {
    const content = lines({ prompt: "a long question that goes on and on", completion: "x" }, { prompt: "q", completion: "y" });
    const dataset = load(content, { chatTemplate: false, maxLength: 6 });
    expect(dataset.counts).toEqual({ rows: 2, truncated: 0, dropped: 1 });
    expect(dataset.train.every(({ mask }) => mask.includes(1))).toBe(true);
  });

  test("a file of which nothing is left says how many rows it had", () => {
    const fault = refused(() => load(rows, { maxLength: 1 }));
    expect(fault.code).toBe("data.file");
    expect(fault.message).toMatch(/\.jsonl: has no usable row: nothing to learn within max_length, dropped: 2 rows/);
  });
});

describe("held-out rows", () => {
  const rows = lines(...Array.from({ length: 40 }, (_, i) => ({ text: `row ${i}` })));
  const linesOf = (samples: readonly Sample[]) => samples.map(({ source }) => source.line);

  test("are the share asked for, the same for all whose rows they are, and never in both parts", () => {
    const path = file(rows);
    const sweep = `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = { train = "${path}", split = 0.25 }\n`;
    const { adapters } = parseRecipe(`${sweep}sweep = { learning_rate = [1e-3, 1e-4] }\n`, "/here/r.toml");
    expect(adapters[0]!.seed).not.toBe(adapters[1]!.seed);
    const [one, other] = adapters.map((adapter) => loadDataset(adapter, smollm, VOCAB));
    expect(one!.eval.length).toBe(10);
    expect([...linesOf(one!.train), ...linesOf(one!.eval)].sort((a, b) => a - b)).toEqual(
      Array.from({ length: 40 }, (_, i) => i + 1),
    );
    expect(linesOf(other!.eval)).toEqual(linesOf(one!.eval));
  });

  test("are at least one, and never all", () => {
    expect(load(rows, { evalSplit: 0.001 }).eval.length).toBe(1);
    expect(refused(() => load(lines({ text: "alone" }), { evalSplit: 0.1 })).code).toBe("data.split");
  });

  test("come from their own file where the recipe names one, and count", () => {
    const dataset = load(rows, { eval: [file(lines({ text: "held" }))] });
    expect([dataset.train.length, dataset.eval.length, dataset.counts.rows]).toEqual([40, 1, 41]);
  });
});

test("adapters that read a file in the same way share its rows; those that do not, do not", () => {
  const path = file(lines({ text: "one two three four" }));
  const read: ReadFiles = new Map();
  const get = (changes: Partial<DatasetRecipe>) => loadDataset(recipe(path, changes), smollm, VOCAB, read).train[0]!;
  expect(get({ name: "b" }).ids.buffer).toBe(get({}).ids.buffer);
  expect(get({ maxLength: 3 }).ids.length).toBe(3);
  expect(get({}).ids.length).toBeGreaterThan(3);
});

describe("what a file may hold in addition to rows", () => {
  test("blank lines, CRLF, a byte order mark, and a last line without an end", () => {
    const dataset = load('\ufeff\r\n{"text": "a"}\r\n\n   \n{"text": "b c"}');
    expect(dataset.train.map(({ source }) => source.line)).toEqual([2, 5]);
    expect(dataset.counts.rows).toBe(2);
  });

  test("lines longer than a piece that is read at once, across its edges", () => {
    const lengths = [1 << 20, 3 << 20, 5, (1 << 20) - 12];
    const dataset = load(lines(...lengths.map((length, i) => ({ about: "é".repeat(length / 2), text: `row ${i}` }))));
    expect(said(dataset).map(([text]) => text)).toEqual(lengths.map((_, i) => `row ${i}<|im_end|>`));
  });
});

describe("faults", () => {
  const good = JSON.stringify({ prompt: "a", completion: "b" });
  const turns = (...messages: readonly unknown[]) => JSON.stringify({ messages });
  const user = { role: "user", content: "hi" };

  test.each<[string, string | Uint8Array, RegExp]>([
    ["no JSON", "{prompt: 1}", /is no JSON \(/],
    ["a cut row", good.slice(0, -3), /is no JSON \(/],
    ["a list over several lines", "[", /one object on one line/],
    ["a key twice", '{"prompt": "a", "completion": "b", "completion": "c"}', /has the key 'completion' twice in one object/],
    [
      "a key twice, within a turn",
      '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
      /has the key 'content' twice in one object/,
    ],
    ["a list", "[1]", /is no JSON object: \[1\]/],
    ["null", "null", /is no JSON object: null/],
    ["a lacking field", '{"prompt": "a"}', /lacks the field 'completion'/],
    ["a number", '{"prompt": 1, "completion": "b"}', /has 1 in 'prompt', expected a string/],
    ["a null", '{"prompt": "a", "completion": null}', /has null in 'completion', expected a string/],
    ["an empty completion", '{"prompt": "a", "completion": " \\n"}', /has an empty 'completion'/],
    ["half a character", '{"prompt": "a", "completion": "\\ud83d"}', /half a character/],
    ["no UTF-8", Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d), /is not UTF-8 text/],
    ["UTF-16", new Uint8Array(Buffer.from('\ufeff{"prompt": "a"}', "utf16le")), /is not UTF-8 text/],
    ["deep nesting", "[".repeat(1e6), /is no JSON|is no JSON object/],
  ])("%s, with file and line", (_, row, message) => {
    const path = file(Buffer.concat([Buffer.from(`${good}\n\n`), Buffer.from(row), Buffer.from(`\n${good}\n`)]));
    const fault = refused(() => loadDataset(recipe(path), smollm, VOCAB));
    expect(fault.code).toBe("data.row");
    expect(fault.exit).toBe(2);
    expect(fault.message).toMatch(message);
    expect(fault.message.startsWith(`${path}:3: `)).toBe(true);
    expect(fault.message.length).toBeLessThan(path.length + 300);
  });

  test.each<[string, string, RegExp]>([
    ["no turns", turns(), /has no list of turns in 'messages'/],
    ["no answer", turns(user), /has no turn of the assistant/],
    ["an empty answer", turns(user, { role: "assistant", content: "" }), /empty turn of the assistant/],
    ["an unknown role", turns(user, { role: "robot", content: "x" }), /has "robot" as messages\[1\]\.role; known are system/],
    ["ShareGPT's role under another name", turns({ role: "human", content: "x" }), /has "human" as messages\[0\]\.role/],
    ["a turn that is none", turns(user, 3), /has no object in messages\[1\]/],
    ["no content", turns(user, { role: "assistant" }), /has no text in messages\[1\]\.content/],
  ])("in a chat: %s", (_, row, message) => {
    expect(refused(() => load(row)).message).toMatch(message);
  });

  test("an unknown form says what was found and what is known", () => {
    expect(refused(() => load('{"question": "a", "answer": "b"}')).message).toMatch(
      /has the fields question, answer; expected messages/,
    );
  });

  test("a template's field that a row lacks; an invalid template, or one that writes no field", () => {
    const template = { prompt: "{{ qestion }}", completion: "{{ answer }}" };
    const content = lines({ question: "a", answer: "b" });
    expect(refused(() => load(content, { format: "template", template })).message).toMatch(/:1: lacks the field 'qestion'/);
    const broken = { prompt: "{{ question", completion: "x" };
    expect(refused(() => load(content, { format: "template", template: broken })).code).toBe("data.template");
    const blind = { prompt: "{question}", completion: "{answer}" }; // not as Jinja writes fields
    expect(refused(() => load(content, { format: "template", template: blind })).message).toContain("writes no field of a row");
    const constant = { prompt: "Write a poem.", completion: "{{ answer }}" };
    expect(said(load(content, { format: "template", template: constant })).length).toBe(1);
  });

  test("what the chat template refuses, in its own words", () => {
    const messages = [user, user, { role: "assistant", content: "x" }];
    expect(refused(() => load(lines({ messages }), {}, llama2)).message).toMatch(
      /:1: does not fit the model's chat template: .*alternate/,
    );
  });

  test("a chat for a model without a chat template; plain pairs need none", () => {
    const plain = goldenTokenizer("smollm", {}, null);
    expect(refused(() => load(turns(user, { role: "assistant", content: "x" }), {}, plain)).message).toMatch(
      /no chat template/,
    );
    const pair = JSON.stringify({ prompt: "a", completion: " b" });
    expect(said(load(pair, {}, plain), plain)).toEqual([["a b<|im_end|>", " b<|im_end|>"]]);
  });

  test("a completion that cannot be ended, for a tokenizer that names no end", () => {
    const endless = goldenTokenizer("smollm", {}, null, { eos_token: null });
    expect(refused(() => load(good, {}, endless)).message).toMatch(/names no eos_token/);
  });

  test("the first five of a file are reported at once", () => {
    const fault = refused(() => load("{}\n".repeat(9)));
    expect(fault.message.split("\n").map((line) => /:(\d+): /.exec(line)?.[1])).toEqual(["1", "2", "3", "4", "5"]);
    expect(fault.hint).toEndWith("; later rows were not checked");
  });

  test("a token that the model does not know", () => {
    expect(refused(() => loadDataset(recipe(file(good)), smollm, 100)).message).toMatch(
      /:1: has the token \d+; the model knows 100/,
    );
  });

  test("a file that is not there, is empty, is a folder, or holds blank lines only", () => {
    const sub = join(folder, "sub");
    mkdirSync(sub);
    const why = (path: string) => refused(() => loadDataset(recipe(path), smollm, VOCAB));
    for (const [path, message] of [
      [join(folder, "none.jsonl"), "no such file"],
      [join(file("{}"), "under-a-file"), "cannot be read"],
      [`${folder}/nul\0.jsonl`, "cannot be read"],
      [file(""), "is empty"],
      [sub, "is a directory"],
      [file("\n\n \n"), "has no row"],
    ] as const) {
      expect(why(path).code).toBe("data.file");
      expect(why(path).message).toStartWith(`${path}: ${message}`);
    }
  });
});

test("preferences may be whole conversations, also with the prompt once more as a string next to them", () => {
  const turn = (role: string, content: string) => ({ role, content });
  const talk = (answer: string) => [turn("user", "Hi"), turn("assistant", answer)];
  const dpo = { objective: { name: "dpo", loss: "sigmoid", beta: 0.1, labelSmoothing: 0, reference: "start" } } as const;
  const read = (row: object) => load(lines(row), dpo).train.map(({ ids, mask, other }) => ({ ids, mask, other }));
  const whole = { chosen: talk("Hello"), rejected: talk("Go away") };
  const apart = {
    prompt: [turn("user", "Hi")],
    chosen: [turn("assistant", "Hello")],
    rejected: [turn("assistant", "Go away")],
  };
  expect(read(whole)).toEqual(read(apart));
  expect(read({ prompt: "Hi", ...whole })).toEqual(read(apart));
  expect(read({ prompt: "Hi", chosen: "Hello", rejected: "Go away" })).toEqual(read(apart));
  expect(read({ ...apart, prompt: "Hi" })).toEqual(read(apart));
  expect(refused(() => load(lines({ chosen: talk("a"), rejected: talk("a").slice(1) }), dpo)).message).toContain(
    "begin differently",
  );
  const { prompt: messages, chosen: preferred_output, rejected: non_preferred_output } = apart;
  const openAi = { input: { messages, tools: [], parallel_tool_calls: true }, preferred_output, non_preferred_output };
  expect(read(openAi)).toEqual(read(apart));
  expect(load(lines(openAi), dpo).notices.map(({ kind }) => kind)).toEqual(["fields"]); // parallel_tool_calls
  expect(refused(() => load(lines({ ...openAi, input: "Hi" }), dpo)).message).toContain("in 'input', expected an object");
});
