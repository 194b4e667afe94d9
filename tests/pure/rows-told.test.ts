// What a row says reaches the text that is trained, or it is reported by name: thoughts, tools, system messages, weights,
// template arguments.

import { describe, expect, test } from "bun:test";
import type { Sample } from "../../src/data/dataset.ts";
import { refused } from "../helpers/refused.ts";
import { assistant, DPO, learnedOf, lines, llama, rowFiles, smollm, textOf, told, user } from "../helpers/rows.ts";

const { fileOf, load } = rowFiles("told");

const sunny = { name: "sky", description: "What the sky is like", parameters: { type: "object", properties: {} } };
const TOOL = { type: "function", function: sunny };

describe("what a template marks as generated", () => {
  const row = lines({ messages: [user("a"), assistant("b"), user("c"), assistant(" d ")] });
  const of = (answer: string, more = "") =>
    `${more}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == "assistant" %}${answer}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}`;
  const [begin, end] = ["{%- generation -%}", "{%- endgeneration -%}"];
  test.each([
    ["all", of(`${begin}{{ m.content }}<|im_end|>${end}`), null],
    ["all, and the line break", of(`${begin}{{ m.content }}<|im_end|>\n${end}`), null],
    ["in two parts", of(`${begin}{{ m.content }}${end}${begin}<|im_end|>${end}`), null],
    ["nothing", of("{{ m.content }}<|im_end|>"), null],
    ["not the end", of(`${begin}{{ m.content }}${end}<|im_end|>`), "'<|im_end|>'"],
    ["not what it says", of(`{{ m.content }}${begin}<|im_end|>${end}`), "'b'"],
    [
      "the last alone",
      of(`{% if loop.last %}${begin}{{ m.content }}<|im_end|>${end}{% else %}{{ m.content }}<|im_end|>{% endif %}`),
      "'b<|im_end|>'",
    ],
    [
      "within a macro, where it is not found",
      of("{{ say(m) }}", `{% macro say(m) %}${begin}{{ m.content }}${end}<|im_end|>{% endmacro %}`),
      null,
    ],
  ])("%s: what is learned besides is reported", (_, template, words) => {
    const dataset = load(row, { chatTemplate: fileOf(template, "generation.jinja") });
    const turns = words?.startsWith("'b") && words !== "'b'" ? 1 : 2;
    expect(told(dataset, "generation")).toEqual(
      words === null ? null : expect.objectContaining({ rows: 1, turns, example: expect.stringContaining(`turn 2: ${words}`) }),
    );
    expect(learnedOf(dataset.train[0]!)).toBe("b<|im_end|> d <|im_end|>");
  });
});

describe("thoughts", () => {
  test.each(["reasoning_content", "reasoning", "thinking"])("as %s are those that the template knows", (name) => {
    const { train } = load(lines({ messages: [user("7?"), assistant("seven", { [name]: "hm" })] }));
    expect(learnedOf(train[0]!)).toBe("<think>\nhm\n</think>\n\nseven<|im_end|>");
  });

  test("go to a template that reads them as thinking, from wherever they stand", () => {
    const text =
      "{% for m in messages %}{{ m.role }}|{% if m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant|{% endif %}";
    const chatTemplate = fileOf(text, "thinking.jinja");
    for (const answer of [assistant("b", { reasoning: "why" }), assistant("<think>\nwhy\n</think>\n\nb")]) {
      const { train } = load(lines({ messages: [user("a"), answer] }), { chatTemplate });
      expect(learnedOf(train[0]!)).toBe("(why)b<|im_end|>");
    }
  });

  test("that contradict each other are refused", () => {
    const row = lines({ messages: [user("a"), assistant("b", { reasoning: "x", thinking: "y" })] });
    expect(refused(() => load(row)).message).toContain("different thoughts in messages[1].reasoning and messages[1].thinking");
    const inside = lines({ messages: [user("a"), assistant("<think>\nz\n</think>\n\nb", { reasoning: "x" })] });
    expect(refused(() => load(inside)).message).toContain("and others within messages[1].content");
  });

  const long = [user("1?"), assistant("one", { reasoning: "first" }), user("2?"), assistant("two", { reasoning: "second" })];

  test("of earlier turns that the template leaves out are reported, with an example", () => {
    const dataset = load(lines({ messages: long }, { messages: long }));
    expect(told(dataset, "thoughts")).toMatchObject({ rows: 2, turns: 2 });
    expect(told(dataset, "thoughts")!.example).toMatch(/jsonl:1, turn 2: 'first'$/);
  });

  test("every-turn: each turn is learned with just what stands before it, and nothing is lost", () => {
    const dataset = load(lines({ messages: long }), { thoughts: "every-turn" });
    expect(dataset.train.map((row) => learnedOf(row))).toEqual([
      "<think>\nfirst\n</think>\n\none<|im_end|>",
      "<think>\nsecond\n</think>\n\ntwo<|im_end|>",
    ]);
    expect(textOf(dataset.train[1]!)).not.toContain("first"); // the model does not see it there either
    expect(told(dataset, "thoughts")).toBeNull();
    expect(dataset.counts.rows).toBe(1);
  });

  test("every-turn: the turns of a row are held out together", () => {
    const rows = lines(
      ...Array.from({ length: 10 }, (_, i) => ({ messages: [user(`${i}a`), assistant("b"), user(`${i}c`), assistant("d")] })),
    );
    const { train, eval: held } = load(rows, { thoughts: "every-turn", evalSplit: 0.3 });
    const linesOf = (samples: readonly Sample[]) => new Set(samples.map(({ source }) => source.line));
    expect([linesOf(held).size, held.length, train.length]).toEqual([3, 6, 14]);
    expect([...linesOf(held)].filter((line) => linesOf(train).has(line))).toEqual([]);
  });

  test("drop: none are trained, in whatever form they came", () => {
    const rows = lines(
      { messages: [user("a"), assistant("b", { thinking: "gone" })] },
      { messages: [user("a"), assistant("<think>\ngone\n</think>\n\nb")] },
    );
    const dataset = load(rows, { thoughts: "drop" });
    for (const row of dataset.train) expect(textOf(row)).not.toContain("gone");
    expect(told(dataset, "thoughts")).toBeNull();
  });

  test("an empty think block of the template is read and not learned; one that the data has is learned", () => {
    const dataset = load(lines({ messages: [user("a"), assistant("b")] }));
    expect(textOf(dataset.train[0]!)).toContain("<think>\n\n</think>\n\nb");
    expect(learnedOf(dataset.train[0]!)).toBe("b<|im_end|>");
    expect(told(dataset, "empty thoughts")).toMatchObject({ rows: 1, turns: 1 });
    const [own] = load(lines({ messages: [user("a"), assistant("<think>\n\n</think>\n\nb")] })).train;
    expect(learnedOf(own!)).toBe("<think>\n\n</think>\n\nb<|im_end|>");
  });

  test("a template that knows no thoughts loses them, and it is reported", () => {
    const dataset = load(lines({ messages: [user("a"), assistant("b", { reasoning_content: "lost words" })] }), {}, llama);
    expect(told(dataset, "thoughts")!.example).toContain("'lost words'");
  });

  test("a row of whose only answer nothing is left is refused", () => {
    const chatTemplate = fileOf(
      "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}x<|im_end|>",
      "deaf.jinja",
    );
    expect(refused(() => load(lines({ messages: [user("a"), assistant("b")] }), { chatTemplate })).code).toBe("data.row");
  });
});

test("answers that the template ends with no token are learned whole, and told", () => {
  const chatTemplate = fileOf(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "open.jinja",
  );
  const dataset = load(lines({ messages: [user("a"), assistant("b c")] }), { chatTemplate });
  expect(learnedOf(dataset.train[0]!)).toBe("b c");
  expect(told(dataset, "no end")).toMatchObject({ rows: 1, turns: 1 });
});

describe("tools", () => {
  const calls = { tool_calls: [{ type: "function", function: { name: "sky", arguments: { at: "Oslo" } } }] };
  const called = assistant("", calls);
  const row = { messages: [user("Sky?"), called, { role: "tool", content: "grey" }, assistant("It is grey.")] };

  test.each([
    ["a list", [TOOL]],
    ["its JSON text", JSON.stringify([TOOL])],
  ])("of a row reach the template, as %s", (_, tools) => {
    const text = textOf(load(lines({ ...row, tools })).train[0]!);
    expect(text).toContain("<tools>");
    expect(text).toContain('"description": "What the sky is like"');
  });

  test.each([[[]], [null], [""], ["[]"]])("%p is no list of tools", (tools) => {
    const [own] = load(lines({ ...row, tools })).train;
    expect(textOf(own!)).toBe(textOf(load(lines(row)).train[0]!));
  });

  test.each([[3], ["no JSON"], [{ name: "sky" }], [["sky"]]])("%p is refused", (tools) => {
    expect(refused(() => load(lines({ ...row, tools }))).message).toContain(
      "in 'tools', expected a list of tools, or its JSON text",
    );
  });

  test("reach the template in preferences, labelled rows and paraphrases", () => {
    const answers = { prompt: [user("Sky?")], chosen: [assistant("Grey.")], rejected: [assistant("No.")], tools: [TOOL] };
    const [pair] = load(lines(answers), DPO).train;
    for (const sequence of [pair!, pair!.other!]) expect(textOf(sequence)).toContain("<tools>");
    const kto = { name: "kto", beta: 0.1, desirable: 1, undesirable: 1, reference: "start" } as const;
    const labelled = { prompt: [user("Sky?")], completion: [assistant("Grey.")], label: true, tools: [TOOL] };
    for (const sample of load(lines(labelled, labelled), { objective: kto }).train) expect(textOf(sample)).toContain("<tools>");
  });

  test("that the template does not read, or the form has no place for, are reported", () => {
    expect(told(load(lines({ ...row, tools: [TOOL] }), {}, smollm), "fields")!.example).toContain("tools");
    expect(told(load(lines({ text: "plain", tools: [TOOL] })), "fields")!.example).toContain("tools");
    expect(told(load(lines({ ...row, tools: [TOOL] })), "fields")).toBeNull();
  });

  test("arguments as JSON text are those of the object, where the template would quote them", () => {
    const chatTemplate = fileOf(
      "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
      "calls.jinja",
    );
    const text = (given: unknown) => {
      const call = assistant("", { tool_calls: [{ function: { name: "sky", arguments: given } }] });
      return learnedOf(load(lines({ messages: [user("a"), call] }), { chatTemplate }).train[0]!);
    };
    expect(text('{"at": "Oslo"}')).toBe(text({ at: "Oslo" }));
  });

  test("a call that the template leaves out is reported", () => {
    const both = assistant("Let me look.", calls);
    expect(told(load(lines({ messages: [user("a"), both] }), {}, smollm), "tool calls")!.example).toContain("sky");
  });

  test("ShareGPT's calls and their results are turns", () => {
    const conversations = [
      { from: "human", value: "Sky?" },
      { from: "function_call", value: '{"name": "sky", "arguments": {"at": "Oslo"}}' },
      { from: "observation", value: "grey" },
      { from: "gpt", value: "Grey." },
    ];
    const [sample] = load(lines({ conversations, tools: JSON.stringify([TOOL]) })).train;
    expect(learnedOf(sample!)).toContain('<tool_call>\n{"name": "sky", "arguments": {"at": "Oslo"}}\n</tool_call><|im_end|>');
    expect(textOf(sample!)).toContain("<tool_response>\ngrey\n</tool_response>");
  });
});

describe("turns that are context", () => {
  const chat = (first: object, last: object = {}) =>
    lines({ messages: [user("2+2?"), assistant("5", first), user("No."), assistant("4", last)] });

  test.each([[{ weight: 0 }], [{ train: false }], [{ weight: 0.0, train: false }]])("%p is read and not learned", (mark) => {
    const [sample] = load(chat(mark), {}, smollm).train;
    expect(learnedOf(sample!, smollm)).toBe("4<|im_end|>");
    expect(textOf(sample!, smollm)).toContain("5<|im_end|>");
  });

  test("a weight of 1 is as if it were not there", () => {
    const [sample, plain] = load(chat({ weight: 1 }, { train: true }) + chat({}), {}, smollm).train;
    expect([...sample!.mask]).toEqual([...plain!.mask]);
  });

  test("where all is learned they are left out all the same", () => {
    const [sample] = load(chat({ weight: 0 }), { trainOn: "all" }, smollm).train;
    expect(learnedOf(sample!, smollm)).not.toContain("5");
    expect(learnedOf(sample!, smollm)).toContain("No.");
  });

  test.each([
    [{ weight: 0.5 }, "has 0.5 in messages[1].weight, expected 0 or 1"],
    [{ weight: "0" }, 'has "0" in messages[1].weight, expected 0 or 1'],
    [{ train: "no" }, "in messages[1].train, expected true or false"],
    [{ weight: 1, train: false }, "has weight 1 and train false in messages[1]"],
  ])("%p is refused", (mark, said) => {
    expect(refused(() => load(chat(mark))).message).toContain(said);
  });

  test("a chat without a turn to learn is refused", () => {
    expect(refused(() => load(chat({ weight: 0 }, { weight: 0 }))).message).toContain("has no turn that is learned");
  });
});

describe("in fields next to the turns", () => {
  const chat = { messages: [user("Hi"), assistant("Salut")] };

  test.each(["system", "system_prompt"])("a system message as %s leads the chat", (name) => {
    const [sample] = load(lines({ ...chat, [name]: "Speak French." }), { system: "Be brief." }, smollm).train;
    expect(textOf(sample!, smollm)).toStartWith("<|im_start|>system\nSpeak French.<|im_end|>");
  });

  test("goes after one among the turns, which is reported, and before the recipe's", () => {
    const messages = [{ role: "system", content: "Among." }, ...chat.messages];
    const dataset = load(lines({ messages, system: "Beside." }), { system: "Recipe." }, smollm);
    expect(textOf(dataset.train[0]!, smollm)).toStartWith("<|im_start|>system\nAmong.");
    expect(told(dataset, "fields")!.example).toContain("system");
  });

  test("template arguments of a row go before the recipe's; those that are not asked for are reported", () => {
    const rows = lines(
      { ...chat, chat_template_kwargs: { enable_thinking: true, fast: 1 } },
      { ...chat, chat_template_kwargs: {} },
    );
    const chatTemplate = fileOf(
      "{% for m in messages %}{{ m.role }}{{ '+' if enable_thinking else '-' }}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant{{ '+' if enable_thinking else '-' }}{% endif %}",
      "kwargs.jinja",
    );
    const dataset = load(rows, { chatVariables: { enable_thinking: false }, chatTemplate });
    expect(dataset.train.map((row) => textOf(row))).toEqual([
      "user+Hi<|im_end|>assistant+Salut<|im_end|>",
      "user-Hi<|im_end|>assistant-Salut<|im_end|>",
    ]);
    expect(told(dataset, "template arguments")!.example).toContain("fast");
  });

  test("fields that are not used are reported once, by name", () => {
    const dataset = load(lines({ ...chat, id: 7, source: "web", note: null }, { ...chat, id: 8 }));
    expect(told(dataset, "fields")).toMatchObject({ rows: 2 });
    expect(told(dataset, "fields")!.example).toEndWith(": id, source");
  });

  test("alpaca's history is earlier turns", () => {
    const row = { instruction: "And?", output: "More.", history: [["Who?", "Me."]] };
    expect(learnedOf(load(lines(row), {}, smollm).train[0]!, smollm)).toBe("Me.<|im_end|>More.<|im_end|>");
  });

  test("content in parts of text is their text; other parts are refused", () => {
    const parts = (...content: readonly object[]) => lines({ messages: [{ role: "user", content }, assistant("Yes")] });
    expect(
      textOf(load(parts({ type: "text", text: "a" }, { type: "text", text: "b" }), {}, smollm).train[0]!, smollm),
    ).toContain("user\nab<|im_end|>");
    expect(refused(() => load(parts({ type: "image_url", image_url: {} }))).message).toContain(
      'part of type "image_url" in messages[0].content[0]',
    );
  });

  test("keys of a turn that are null are not there", () => {
    const full = {
      messages: [{ ...user("Hi"), name: null, tool_calls: null }, assistant("Yo", { tool_calls: null, thinking: null })],
    };
    const [own, plain] = load(lines(full, { messages: [user("Hi"), assistant("Yo")] })).train;
    expect([...own!.ids]).toEqual([...plain!.ids]);
  });
});

describe("preferences", () => {
  const good = { prompt: [user("a")], chosen: [assistant("b")], rejected: [assistant("c")] };

  test("a prompt that both conversations begin with is there once", () => {
    const again = { prompt: [user("a")], chosen: [user("a"), assistant("b")], rejected: [user("a"), assistant("c")] };
    const [own, plain] = load(lines(again, good), DPO, smollm).train;
    expect([...own!.ids]).toEqual([...plain!.ids]);
    expect([...own!.other!.ids]).toEqual([...plain!.other!.ids]);
  });

  test("whose answers are the same, whole or after cutting, are dropped and told; a file of nothing else is refused", () => {
    const same = { ...good, rejected: [assistant("b")] };
    const long = (end: string) => [assistant(`${"word ".repeat(60)}${end}`)];
    const dataset = load(
      lines(good, same, { ...good, chosen: long("x"), rejected: long("y") }),
      { ...DPO, maxLength: 40 },
      smollm,
    );
    expect(dataset.train).toHaveLength(1);
    expect(dataset.counts.dropped).toBe(2);
    expect(told(dataset, "same answers")).toMatchObject({ rows: 2 });
    expect(refused(() => load(lines(same), DPO, smollm)).message).toContain("two answers with the same tokens");
  });

  test("that are one conversation, or one that begins the other, are reported as that", () => {
    const whole = [user("a"), assistant("b")];
    expect(refused(() => load(lines({ chosen: whole, rejected: whole }), DPO)).message).toContain("has the same conversation");
    const more = [...whole, user("c"), assistant("d")];
    expect(refused(() => load(lines({ chosen: more, rejected: whole }), DPO)).message).toContain(
      "has in 'rejected' the beginning of",
    );
  });
});

test("a character that the tokenizer has no token for is refused in plain text, too", () => {
  const chosen = ["\u0000", "\u0004", "\u{50000}"].filter((char) => !smollm.decode(smollm.encode(`a${char}b`)).includes(char));
  for (const char of chosen)
    expect(refused(() => load(lines({ text: `a${char}b` }), {}, smollm)).message).toContain("has the character U+");
});
