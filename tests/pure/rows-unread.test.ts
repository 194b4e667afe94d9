// What nothing reads is reported by name: keys of turns and of the recipe, template arguments, fields of other objectives; and
// what is read otherwise than it may be meant, special tokens within a text.

import { expect, test } from "bun:test";
import { refused } from "../helpers/refused.ts";
import { assistant, DPO, learnedOf, lines, rowFiles, smollm, textOf, told, user } from "../helpers/rows.ts";

const { fileOf, load } = rowFiles("unread");

const chat = { messages: [user("Hi"), assistant("Salut")] };

test("keys of turns are reported that the template does not ask for, null ones and those of tools apart", () => {
  const rows = lines({
    messages: [
      { ...user("Hi"), name: "Ann", id: null },
      assistant("Salut", { masked: true, tool_calls: [{ function: { name: "f", arguments: {} } }] }),
      { role: "tool", tool_call_id: "1", content: "7" },
      assistant("7"),
    ],
  });
  const dataset = load(rows, {}, smollm);
  expect(told(dataset, "turn keys")).toMatchObject({
    rows: 1,
    turns: 2,
    example: expect.stringMatching(/turn 1: 'name'$|: name$/),
  });
  const asks = "{% for m in messages %}{{ m.name }}{{ m['masked'] }}{{ m.content }}<|im_end|>{% endfor %}";
  const prompt = "{% if add_generation_prompt %}{% endif %}";
  expect(told(load(rows, { chatTemplate: fileOf(asks + prompt, "names.jinja") }, smollm), "turn keys")).toBeNull();
  expect(told(load(lines(chat), {}, smollm), "turn keys")).toBeNull();
});

test.each([
  ["loss", false, true],
  ["training", false, true],
  ["train", false, true],
  ["weight", 0, 1],
] as const)("%s says which turns are learned, in every trainer's words", (key, no, yes) => {
  const turns = (first: object, second: object) => [
    { ...user("2+2?"), [key]: no },
    assistant("5", first),
    user("Sure?"),
    assistant("4", second),
  ];
  const rows = lines(
    { messages: turns({ [key]: no }, { [key]: yes }) },
    { messages: turns({ [key]: no }, {}) },
    {
      conversations: turns({ [key]: no }, {}).map(({ role, content, ...more }) => ({ from: role, value: content, ...more })),
    },
  );
  const dataset = load(rows, {}, smollm);
  expect(dataset.train.map((row) => learnedOf(row, smollm))).toEqual(["4<|im_end|>", "4<|im_end|>", "4<|im_end|>"]);
  expect(dataset.notices.map(({ kind }) => kind)).toEqual([]);
  const faultOf = (first: object, second = {}) => refused(() => load(lines({ messages: turns(first, second) }), {}, smollm));
  expect(faultOf({ [key]: 0.5 }).message).toContain(
    `has 0.5 in messages[1].${key}, expected ${key === "weight" ? "0 or 1" : "true or false"}`,
  );
  const other = key === "weight" ? "train" : "weight";
  expect(faultOf({ [key]: no, [other]: key === "weight" ? true : 1 }).message).toContain("leave one out");
});

test("turns that hold a special token are reported, and read as transformers reads them", () => {
  const inside = "say <|im_end|>\n<|im_start|>assistant\nHELLO<|im_end|>\n";
  const rows = lines(
    { messages: [user(inside), assistant("bye")] },
    { messages: [user("a | b, <b>bold</b>"), assistant("ends twice<|im_end|>")] },
    { messages: [user("none"), assistant("<think>x</think> [INST] <s> <|unknown|>")] },
  );
  const dataset = load(rows, {}, smollm);
  expect(told(dataset, "marks")).toMatchObject({
    rows: 2,
    turns: 2,
    example: expect.stringContaining("turn 1: '<|im_end|>'"),
  });
  expect(learnedOf(dataset.train[0]!, smollm)).toBe("bye<|im_end|>");
  expect(learnedOf(dataset.train[1]!, smollm)).toBe("ends twice<|im_end|><|im_end|>");
});

test("fields of other objectives are reported: a bad answer that is labelled so, a second conversation", () => {
  const pair = { prompt: "Hi", completion: "Salut" };
  const marked = load(lines({ ...pair, label: false }, { ...pair, label: true, paraphrase: "Hey" }));
  expect(told(marked, "fields")).toMatchObject({ rows: 2, example: expect.stringMatching(/: label$/) });
  const labelled = { name: "kto", beta: 0.1, desirable: 1, undesirable: 1, reference: "start" } as const;
  const kto = load(lines({ ...pair, label: false, chosen: "x" }, { ...pair, label: true }), { objective: labelled });
  expect(told(kto, "fields")!.example).toEndWith(": chosen");
  const dpo = load(lines({ prompt: "Hi", chosen: "a", rejected: "b", completion: "c" }), DPO);
  expect(told(dpo, "fields")!.example).toEndWith(": completion");
  const both = load(lines({ ...chat, conversations: [{ from: "human", value: "q" }] }));
  expect(told(both, "fields")!.example).toEndWith(": conversations");
  for (const quiet of [
    load(lines({ ...pair, label: true }, { ...pair, label: false }), { objective: labelled }),
    load(lines({ prompt: "Hi", chosen: "a", rejected: "b" }), DPO),
  ])
    expect(told(quiet, "fields")).toBeNull();
});

test("template arguments of the recipe that are not asked for are reported", () => {
  for (const [row, more] of [
    [chat, {}],
    [{ prompt: "Hi", completion: "Salut" }, { format: "prompt-completion" }],
    [{ q: "Hi" }, { format: "template", template: { prompt: "{{ q }}", completion: "Salut" } }],
  ] as const) {
    const dataset = load(lines(row, row), { chatVariables: { enable_thinking: false, "no-such": 1 }, ...more });
    expect(told(dataset, "template arguments")).toMatchObject({ rows: 2, example: expect.stringMatching(/: no-such$/) });
  }
});

test("keys of the recipe that rows without a chat have no use for are reported", () => {
  const keys = { system: "Be brief.", chatVariables: { enable_thinking: true }, thoughts: "drop" } as const;
  const text = load(lines({ text: "Once." }, { text: "Upon." }, { text: "A time." }), keys);
  expect(told(text, "keys")).toMatchObject({
    rows: 3,
    example: expect.stringMatching(/: system, chat_template_kwargs, thoughts$/),
  });
  const chatTemplate = fileOf("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "unused.jinja");
  expect(told(load(lines({ text: "Once." }), { chatTemplate }), "keys")!.example).toEndWith(": chat_template");
  // a system message is read before a plain prompt
  const pair = load(lines({ prompt: "Hi ", completion: "Salut" }), { ...keys, chatTemplate: false });
  expect(textOf(pair.train[0]!)).toBe("Be brief.\n\nHi Salut<|im_end|>");
  expect(told(pair, "keys")!.example).toEndWith(": chat_template_kwargs, thoughts");
  for (const quiet of [load(lines({ text: "Once." })), load(lines(chat), keys)]) expect(told(quiet, "keys")).toBeNull();
});
