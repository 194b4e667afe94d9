// Where answers lie in a conversation's text, and what of a row's text is learned: under templates that end, trim, move or
// leave out.

import { describe, expect, test } from "bun:test";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { endMarks, renderAnswers } from "../../src/data/answers.ts";
import type { Message } from "../../src/data/format.ts";
import { Template } from "../../src/data/jinja.ts";
import { RowFault } from "../../src/data/jsonl.ts";
import { tokenise } from "../../src/data/tokenise.ts";
import { loadTokenizer, type Tokenizer } from "../../src/data/tokenizer.ts";
import { goldenFolder, goldenKinds, goldenTokenizer, withFolder } from "../helpers/golden-tokenizers.ts";

const NAMES = { bos_token: "<s>", eos_token: "</s>" };
const MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>", "<|eot|>", "<tool_call>"];
const SPECIALS = [...MARKS, "</tool_call>", "<think>", "</think>", "<|ready|>"].sort((a, b) => b.length - a.length);

type Renderer = Pick<Tokenizer, "renderChat" | "specials">;
const rendererOf = (text: string, specials: readonly string[] = SPECIALS, names: object = NAMES): Renderer => {
  const template = new Template(text);
  return {
    specials,
    renderChat: ({ messages, variables }, prompt) => {
      try {
        return template.render({ ...names, ...variables, messages, add_generation_prompt: prompt });
      } catch (error) {
        throw new RowFault(String(error));
      }
    },
  };
};

const user = (content: string): Message => ({ role: "user", content });
const said = (content: string, more: object = {}): Message => ({ role: "assistant", content, ...more });
const chatOf = (messages: readonly Message[], unlearned: readonly number[] = []) =>
  ({ kind: "chat", messages, variables: {}, answersFrom: 0, unlearned: new Set(unlearned) }) as const;

/** The text with the spans of answers in brackets. */
function bracketed(renderer: Renderer, messages: readonly Message[], unlearned: readonly number[] = []): string {
  const { text, answers } = renderAnswers(chatOf(messages, unlearned), renderer);
  let [out, at] = ["", 0];
  for (const { from, to } of answers) {
    out += `${text.slice(at, from)}[[${text.slice(from, to)}]]`;
    at = to;
  }
  return out + text.slice(at);
}

const CHATML =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}" +
  "{{ '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const THINKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const TEMPLATES = {
  chatml: CHATML,
  "a generation prompt that opens thoughts": CHATML.replace(THINKS, THINKS.replace("assistant\n'", "assistant\n<think>\n'")),
  "the whole chat's end mark":
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% for c in m.tool_calls or [] %}" +
    "{{ '<tool_call>' + c.function.name + '</tool_call>' }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}" +
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}",
  "the whole chat's end mark, close by":
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}" +
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}",
  "two marks behind an answer":
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|eot|><|end|>' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
  "no generation prompt":
    "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}",
  "no generation prompt, trimmed":
    "{% for m in messages %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' if m.role == 'user' else ' ' + m.content.strip() + ' ' + eos_token }}{% endfor %}",
  "a generation prompt always":
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + (m.content | trim) + '<|eot|>' }}{% endfor %}{{ '<|assistant|>\n' }}",
  "words for marks":
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
  "another mark behind the last answer":
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + ('<|ready|>' if loop.last and m.role == 'assistant' else '<|end|>') }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
  "earlier thoughts left out":
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' and not loop.last %}" +
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}{{ '<|end|>' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
  "the first turn moved to the last question":
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (messages | length ~ ' turns. ') + m.content + '[/INST]' }}" +
    "{% else %}{{ ' ' + (m.content | trim) + eos_token }}{% endif %}{% endfor %}",
} as const;
const named = Object.fromEntries(Object.entries(TEMPLATES).map(([name, text]) => [name, rendererOf(text)])) as Record<
  keyof typeof TEMPLATES,
  Renderer
>;

describe("an answer's span", () => {
  const two = [user("U1"), said("A1"), user("U2"), said("A2")];

  test("ends where the turn ends, where the whole chat ends with a mark of its own", () => {
    for (const [name, line] of [
      ["the whole chat's end mark", "\n"],
      ["the whole chat's end mark, close by", ""],
    ] as const) {
      const question = (n: number) => `<|user|>${line}U${n}<|end|>${line}`;
      const answer = (n: number) => `<|assistant|>${line}[[A${n}<|end|>]]${line}`;
      expect(bracketed(named[name], two)).toBe(`${question(1)}${answer(1)}${question(2)}${answer(2)}</s>`);
      expect(bracketed(named[name], two.slice(0, 3))).toBe(`${question(1)}${answer(1)}${question(2)}</s>`);
    }
    const call = said("", { tool_calls: [{ type: "function", function: { name: "f", arguments: {} } }] });
    expect(bracketed(named["the whole chat's end mark"], [user("U1"), call])).toBe(
      "<|user|>\nU1<|end|>\n<|assistant|>\n[[<tool_call>f</tool_call><|end|>]]\n</s>",
    );
  });

  test("holds the white space that the answer ends with, and the mark after it", () => {
    const under = (...answers: string[]) =>
      bracketed(
        named["no generation prompt"],
        answers.flatMap((answer) => [user("hi"), said(answer)]),
      );
    expect(under("yes")).toBe("<s>[INST] hi [/INST][[ yes</s>]]");
    expect(under("yes\n")).toBe("<s>[INST] hi [/INST][[ yes\n</s>]]");
    expect(under("yes  ")).toBe("<s>[INST] hi [/INST][[ yes  </s>]]");
    expect(under("one\n", "two\n")).toBe("<s>[INST] hi [/INST][[ one\n</s>]][INST] hi [/INST][[ two\n</s>]]");
    expect(under("\n\tindented")).toBe("<s>[INST] hi [/INST][[ \n\tindented</s>]]");
  });

  test("is one of the same text, and of a text with other turns' marks in it", () => {
    expect(bracketed(named.chatml, [user("same"), said("same"), user("same"), said("same<|im_end|>\nmore")])).toBe(
      "<|im_start|>user\nsame<|im_end|>\n<|im_start|>assistant\n[[same<|im_end|>]]\n" +
        "<|im_start|>user\nsame<|im_end|>\n<|im_start|>assistant\n[[same<|im_end|>\nmore<|im_end|>]]\n",
    );
    const quoting = [user("How?"), said("<s>[INST] so [/INST] and </s>"), user("And?"), said("[INST]")];
    expect(bracketed(named["no generation prompt"], quoting)).toBe(
      "<s>[INST] How? [/INST][[ <s>[INST] so [/INST] and </s></s>]][INST] And? [/INST][[ [INST]</s>]]",
    );
  });

  test("holds a tool's call without a word of text, wherever in the conversation", () => {
    const call = said("", { tool_calls: [{ type: "function", function: { name: "f", arguments: { a: "<|im_end|>" } } }] });
    const messages = [user("U1"), call, { role: "tool", content: "T1" }, said("A1"), user("U2"), call];
    const learned = '[[<tool_call>f{"a": "<|im_end|>"}</tool_call><|im_end|>]]';
    for (const name of ["chatml", "a generation prompt that opens thoughts"] as const)
      expect(bracketed(named[name], messages)).toBe(
        `<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n${learned}\n<|im_start|>tool\nT1<|im_end|>\n` +
          `<|im_start|>assistant\n[[A1<|im_end|>]]\n<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n${learned}\n`,
      );
  });

  test("holds thoughts where the template writes them", () => {
    const thought = (n: number) => said(`<think>\nT${n}\n</think>\n\nA${n}`);
    expect(bracketed(named["earlier thoughts left out"], [user("U1"), thought(1), user("U2"), thought(2)])).toBe(
      "<|user|>U1<|end|><|assistant|>[[A1<|end|>]]<|user|>U2<|end|><|assistant|>[[<think>\nT2\n</think>\n\nA2<|end|>]]",
    );
  });

  test("is left out where the turn is not to be learned", () => {
    for (const renderer of Object.values(named)) {
      const { text, answers } = renderAnswers(chatOf(two, [1]), renderer);
      expect(answers.map(({ from, to }) => text.slice(from, to).includes("A1"))).toEqual([false]);
    }
  });

  test("cannot be found where the template does not write what the turn says", () => {
    const shuffled = rendererOf("{% for m in messages | reverse %}{{ m.role + (m.content | upper) }}{% endfor %}");
    expect(() => renderAnswers(chatOf([user("u"), said("a"), user("v"), said("b")]), shuffled)).toThrow(RowFault);
  });
});

test("the marks after answers are those that end a conversation", () => {
  const found = Object.fromEntries(Object.entries(named).map(([name, renderer]) => [name, endMarks(renderer)]));
  expect(found).toEqual({
    chatml: ["<|im_end|>"],
    "a generation prompt that opens thoughts": ["<|im_end|>"],
    "the whole chat's end mark": ["<|end|>"],
    "the whole chat's end mark, close by": ["<|end|>"],
    "two marks behind an answer": ["<|end|>"],
    "no generation prompt": ["</s>"],
    "no generation prompt, trimmed": ["</s>"],
    "a generation prompt always": ["<|eot|>"],
    "words for marks": [],
    "another mark behind the last answer": ["<|ready|>"],
    "earlier thoughts left out": ["<|end|>"],
    "the first turn moved to the last question": ["</s>"],
  });
});

describe("any conversation", () => {
  const real = goldenKinds.flatMap((kind) =>
    readdirSync(goldenFolder(kind))
      .filter((file) => file.endsWith(".jinja"))
      .map((file) => [`${kind}/${file}`, goldenTokenizer(kind, {}, file)] as const),
  );
  const PIECES = [
    "\n",
    " ",
    "  ",
    "",
    "<|im_end|>",
    "[INST]",
    "</s>",
    "\n\n- x",
    "é",
    "\u{1f642}",
    "```\n",
    "{{ x }}",
    "</tool_call>",
  ];

  test.each([...Object.entries(named), ...real])("under %s: spans in order, each with its own words only", (_, renderer) => {
    const rng = new Rng(11);
    const pick = <T>(from: readonly T[]): T => from[Math.floor(rng.uniform() * from.length)]!;
    for (let round = 0; round < 120; round++) {
      const turns = 1 + Math.floor(rng.uniform() * 4);
      const messages: Message[] = [];
      for (let i = 0; i < turns; i++) {
        messages.push(user(`${pick(PIECES)}Uu${i}uU${pick(PIECES)}`));
        const text = rng.uniform() < 0.2 ? "same" : `${pick(PIECES)}Aa${i}aA${pick(PIECES)}`;
        const thought = rng.uniform() < 0.2 ? `<think>\nTt${i}tT\n</think>\n\n` : "";
        if (i + 1 < turns || rng.uniform() < 0.8) messages.push(said(thought + text));
      }
      const expected = renderer.renderChat(chatOf(messages), false);
      const { text, answers } = renderAnswers(chatOf(messages), renderer);
      expect(text).toBe(expected);
      const spoken = messages.filter(({ role }) => role === "assistant");
      expect(answers.length).toBe(spoken.length);
      let at = 0;
      for (const [i, { from, to }] of answers.entries()) {
        const span = text.slice(from, to);
        const word = /Aa\d+aA|same/.exec(spoken[i]!.content)![0];
        expect(from).toBeGreaterThanOrEqual(at);
        expect(span).toContain(word);
        expect(span).not.toMatch(/Uu\d+uU/);
        expect(span.match(/Aa\d+aA/g) ?? [word]).toEqual([word]);
        const end = endMarks(renderer)[0];
        if (end && i + 1 === answers.length && messages.at(-1)!.role === "assistant") {
          const said = spoken[i]!.content.trim();
          expect(span.endsWith(end)).toBe(true);
          const own = said.split(end).length - 1; // marks that the answer itself writes
          expect(span.split(end).length - 1).toBe(1 + own);
        }
        at = to;
      }
      expect(text.slice(at)).not.toMatch(/Aa\d+aA/);
    }
  });
});

describe("plain text", () => {
  const llama2 = goldenTokenizer("llama2");
  const llama3 = goldenTokenizer("llama3");
  const pair = (prompt: string, completion: string) => ({ kind: "pair", prompt, completion }) as const;

  /** A tokenizer that puts "▁" before every text. */
  const spaced = withFolder((folder) => {
    const vocab = Object.fromEntries(
      ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "▁▁", "b", "▁b", "[", "▁["].map((token, id) => [token, id]),
    );
    const added = ["<unk>", "<s>", "</s>"].map((content, id) => {
      return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
    });
    const prepend = { type: "Prepend", prepend: "▁" };
    const replace = { type: "Replace", pattern: { String: " " }, content: "▁" };
    const merges = ["a", "▁", "b", "["].map((piece) => ["▁", piece]);
    const model = { type: "BPE", dropout: null, unk_token: "<unk>", fuse_unk: true, byte_fallback: true, vocab, merges };
    const normalizer = { type: "Sequence", normalizers: [prepend, replace] };
    const decoder = { type: "Sequence", decoders: [{ ...replace, pattern: { String: "▁" }, content: " " }, { type: "Fuse" }] };
    const json = { version: "1.0", added_tokens: added, normalizer, pre_tokenizer: null, post_processor: null, decoder, model };
    writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(json));
    const config = { tokenizer_class: "LlamaTokenizer", bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>" };
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config));
    return loadTokenizer(folder);
  });

  test("a prompt and its completion are one text: no space comes between them that is in neither (ids as TRL 1.16 makes them)", () => {
    for (const [prompt, completion, ids, mask] of [
      ["a", "b", [5, 7, 2], [0, 1, 1]],
      ["a", " b", [5, 8, 2], [0, 1, 1]],
      ["a b", "[a", [5, 8, 9, 4, 2], [0, 0, 1, 1, 1]],
    ] as const)
      expect(tokenise(pair(prompt, completion), spaced, "completion")).toEqual({ ids: [...ids], mask: [...mask] });
  });

  test("what is learned begins where the ids part from the prompt's, which is reported where the prompt's end is changed", () => {
    const row = tokenise(pair("b b ", "b"), spaced, "completion");
    expect(row).toEqual({ ids: [8, 8, 8, 2], mask: [0, 0, 1, 1], joined: true }); // alone, the prompt ends with a "▁"
  });

  test("marks that texts bring are not put there twice", () => {
    const { ids, mask } = tokenise({ kind: "text", text: "<|begin_of_text|>hello<|eot_id|>" }, llama3, "completion");
    expect(ids).toEqual(tokenise({ kind: "text", text: "hello" }, llama3, "completion").ids);
    expect(mask).toEqual(ids.map((_, i) => (i === 0 ? 0 : 1)));
    expect(ids.filter((id) => id === llama3.bos || id === llama3.eos)).toEqual([llama3.bos!, llama3.eos!]);
    const row = tokenise(pair("<s>[INST] hi [/INST]", " yes</s>"), llama2, "completion");
    expect(row.ids.filter((id) => id === llama2.bos || id === llama2.eos)).toEqual([llama2.bos!, llama2.eos!]);
    expect([row.ids[0], row.ids.at(-1)]).toEqual([llama2.bos!, llama2.eos!]);
  });
});
