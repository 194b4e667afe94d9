// What a template does with an answer decides what of it is learned, and how its thoughts and calls are handed over: by what
// the template reads, not by the words of its comments and instructions.

import { describe, expect, test } from "bun:test";
import { hasText, isAsked, tellsArguments } from "../../src/data/asked.ts";
import { assistant, learnedOf, lines, rowFiles, textOf, told, user } from "../helpers/rows.ts";

const { fileOf, load } = rowFiles("heard");

/** Turns as ChatML has them; `answer` is what an assistant's turn becomes, `opened` what a prompt for it ends with. */
const chatml = (answer: string, opened = "", before = "") =>
  `${before}{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}${answer}{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n${opened}{% endif %}`;

describe("words of a template that are no reads", () => {
  const said = "<think>\nwhy\n</think>\n\nb";
  const rows = lines({ messages: [user("a"), assistant(said)] });
  test.each([
    ["a comment", chatml("{{ message.content }}", "", "{#- without reasoning_content / thinking -#}")],
    ["an instruction", chatml("{{ message.content }}", "", "<|im_start|>system\nExplain your thinking fully.<|im_end|>\n")],
    ["a text that is printed", chatml("{{ message.content }}", "", "{{ 'Say what you are thinking.' }}")],
  ])("%s leaves thoughts where they are, which the template writes", (_, template) => {
    const dataset = load(rows, { chatTemplate: fileOf(template, "words.jinja") });
    expect(learnedOf(dataset.train[0]!)).toBe(`${said}<|im_end|>`);
    expect(told(dataset, "thoughts")).toBeNull();
  });

  test.each([
    ["message.thinking", "{% if message.thinking %}({{ message.thinking }}){% endif %}"],
    ["an item", "{% if 'thinking' in message %}({{ message['thinking'] }}){% endif %}"],
    ["get", "{% if message.get('reasoning_content') %}({{ message.get('reasoning_content') }}){% endif %}"],
  ])("read as %s they are handed over by name, whatever a comment says of </think>", (_, reads) => {
    const template = chatml(`${reads}{{ message.content }}`, "", "{#- not in <think> ... </think> -#}");
    const { train } = load(rows, { chatTemplate: fileOf(template, "reads.jinja") });
    expect(learnedOf(train[0]!)).toBe("(why)b<|im_end|>");
  });

  test("a key of a turn, a field and an argument that only comments and instructions name are reported", () => {
    const row = { messages: [{ ...user("a"), mood: "glad" }, assistant("b")], tools: [{ name: "f" }] };
    const template = chatml("{{ message.content }}", "", "{# mood, tools #}You may use tools in any mood, be brief.\n");
    const dataset = load(lines(row), { chatTemplate: fileOf(template, "keys.jinja"), chatVariables: { brief: true } });
    expect(told(dataset, "turn keys")!.example).toContain("mood");
    expect(told(dataset, "fields")!.example).toContain("tools");
    expect(told(dataset, "template arguments")!.example).toContain("brief");
  });

  test("a comment does not tell a call's arguments apart", () => {
    const call = { type: "function", function: { name: "f", arguments: '{"city":"Rome"}' } };
    const calls =
      "{% for call in message.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}";
    const template = chatml(calls, "", "{# arguments is string in old files #}");
    const { train } = load(lines({ messages: [user("a"), assistant("", { tool_calls: [call] })] }), {
      chatTemplate: fileOf(template, "arguments.jinja"),
    });
    expect(learnedOf(train[0]!)).toBe('f{"city": "Rome"}<|im_end|>');
  });

  test("names, texts and tests are found wherever expressions stand", () => {
    const template =
      "{# hidden #}plain{% macro m(a) %}{{ a.deep['item'] }}{% endmacro %}{% set x = {'key': one if two else three | default(four)} %}{% if x.arguments is not mapping %}{{ '</end>' ~ m(five) }}{% endif %}";
    for (const name of ["deep", "item", "key", "one", "two", "three", "four", "five"])
      expect(isAsked(name, template)).toBe(true);
    for (const name of ["hidden", "plain", "end", "mapping"]) expect(isAsked(name, template)).toBe(false);
    expect([hasText("</end>", template), hasText("plain", template), hasText("hidden", template)]).toEqual([true, true, false]);
    expect(tellsArguments(template)).toBe(true);
    expect(tellsArguments("{% if x is string %}{% endif %}{# arguments is string #}")).toBe(false);
  });
});

describe("answers of which the template leaves nothing", () => {
  const call = { type: "function", id: "c1", function: { name: "weather", arguments: { city: "Rome" } } };
  const asks = (content = "") => assistant(content, { tool_calls: [call] });
  const chat = (...between: readonly object[]) => [user("a"), ...between, { role: "tool", content: "sun" }, assistant("warm")];
  const chatTemplate = () => fileOf(chatml("{{ message.content }}"), "deaf.jinja");

  test("are read and not learned: to learn their end mark were to learn to say nothing", () => {
    const dataset = load(lines({ messages: chat(asks()) }, { messages: chat(asks("Let me see.")) }), {
      chatTemplate: chatTemplate(),
    });
    const [silent, spoken] = dataset.train;
    expect(textOf(silent!)).toContain("<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool");
    expect(learnedOf(silent!)).toBe("warm<|im_end|>");
    expect(learnedOf(spoken!)).toBe("Let me see.<|im_end|>warm<|im_end|>");
    expect(told(dataset, "tool calls")).toMatchObject({ rows: 2, turns: 2 });
    expect(told(dataset, "nothing left")).toMatchObject({ rows: 1, turns: 1, example: expect.stringContaining("turn 2") });
  });

  test("that are thoughts alone, likewise; with all of a chat they are learned", () => {
    const messages = chat(assistant("", { reasoning_content: "hm" }));
    const dataset = load(lines({ messages }), { chatTemplate: chatTemplate() });
    expect(learnedOf(dataset.train[0]!)).toBe("warm<|im_end|>");
    const all = load(lines({ messages }), { chatTemplate: chatTemplate(), trainOn: "all" });
    expect([...all.train[0]!.mask].slice(1).every((learned) => learned === 1)).toBe(true);
    expect(told(all, "nothing left")).toBeNull();
  });
});

describe("an empty think block that the generation prompt opens", () => {
  // As Qwen 3.5, and Nemotron 3, which writes no line break: what closes the block stands in the answer.
  const write = (open: string, close: string) =>
    `{% set thoughts = message.reasoning_content if message.reasoning_content is string else '' %}${open}{{ thoughts }}${close}{{ message.content }}`;
  test.each([
    ["with line breaks", "<think>\n", "\n</think>\n\n", "<think>\n"],
    ["without", "<think>", "</think>", "<think>"],
    ["with one in the prompt alone", "<think>", "</think>", "<think>\n"],
  ])("%s is read and not learned", (_, open, close, opened) => {
    const chatTemplate = fileOf(chatml(write(open, close), opened), "opened.jinja");
    const plain = load(lines({ messages: [user("a"), assistant("b"), user("c"), assistant("d")] }), { chatTemplate });
    expect(textOf(plain.train[0]!)).toContain(`${open}${close}b`);
    expect(learnedOf(plain.train[0]!)).toBe("b<|im_end|>d<|im_end|>");
    expect(told(plain, "empty thoughts")).toMatchObject({ rows: 1, turns: 2 });
    const thought = load(lines({ messages: [user("a"), assistant("b", { reasoning_content: "why" })] }), { chatTemplate });
    expect(learnedOf(thought.train[0]!)).toContain(`why${close}b<|im_end|>`);
    expect(told(thought, "empty thoughts")).toBeNull();
  });
});

test("thoughts that a template writes as they are are learned where it moves the system message, too", () => {
  // As Mistral's from version 3 on: the system message goes into the last user's turn, so that no rendering begins another.
  const template =
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{% if system and loop.index0 >= messages | length - 2 %}{{ system }}\n\n{% endif %}{{ m.content }}<|im_end|>{% elif m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}";
  const chatTemplate = fileOf(template, "moved.jinja");
  const answers = ["<think>\nwhy\n</think>\n\n b", "  <think>so</think>c ", "\n d", "<think>alone</think>"];
  for (const system of [[], [{ role: "system", content: "S" }]]) {
    const turns = answers.flatMap((content, i) => [user(`q${i}`), assistant(content)]);
    const dataset = load(lines({ messages: [...system, ...turns] }), { chatTemplate });
    expect(learnedOf(dataset.train[0]!)).toBe(answers.map((text) => `${text}<|im_end|>`).join(""));
    expect(dataset.notices).toEqual([]);
  }
});
