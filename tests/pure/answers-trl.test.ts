// Answers as TRL 1.16's training templates mark them (tests/golden/answers/make.py). TRL marks what its {% generation %} blocks
// enclose; here an answer begins where generation begins, after the generation prompt, and ends with its mark: so where they
// differ, TRL's has a piece of the header before it, or the line break or the end of the whole chat after it.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { renderAnswers } from "../../src/data/answers.ts";
import type { Message } from "../../src/data/format.ts";
import { Template } from "../../src/data/jinja.ts";
import { RowFault } from "../../src/data/jsonl.ts";

type Golden = {
  readonly messages: Readonly<Record<string, readonly Message[]>>;
  readonly families: Readonly<
    Record<
      string,
      {
        readonly template: string;
        readonly chats: Readonly<Record<string, { readonly text: string; readonly answers: readonly string[] }>>;
      }
    >
  >;
};
const golden: Golden = JSON.parse(readFileSync(join(import.meta.dir, "../golden/answers/trl.json"), "utf8"));

/** What TRL's answers begin with that a generation prompt writes here, and what they end with that follows the end mark. */
const AROUND: Readonly<Record<string, readonly [before: RegExp, after: string]>> = {
  cohere2: [/^/, ""],
  llama3: [/^/, ""],
  deepseekv3: [/^(<｜Assistant｜>|<｜tool▁outputs▁end｜>)/, ""],
  gptoss: [/^<\|start\|>assistant/, ""],
  gemma3: [/^/, "\n"],
  lfm2_v2: [/^/, "\n"],
  phi3: [/^/, "\n"],
  qwen3: [/^/, "\n"],
  qwen2_5: [/^\n/, "\n"],
  qwen3_5_think: [/^<think>\n/, "\n"],
};
/** Refused: the template writes words before a call as thoughts that it leaves out once an answer follows. */
const REFUSED = ["gptoss: words before a call"];
const cases = Object.entries(golden.families).flatMap(([family, { template, chats }]) =>
  Object.entries(chats).map(([name, chat]) => ({ id: `${family}: ${name}`, family, template, name, ...chat })),
);

test.each(cases)("$id", ({ id, family, template, name, text: wanted, answers: marked }) => {
  const compiled = new Template(template);
  const specials = [...new Set(template.match(/<\|?[\w/]+\|?>|<｜[^｜]+｜>|<\/s>/g)), "<s>", "</s>", "</think>"];
  const renderer = {
    specials: specials.sort((a, b) => b.length - a.length),
    renderChat: ({ messages }: { readonly messages: readonly Message[] }, prompt: boolean) => {
      const names = { bos_token: "<s>", eos_token: "</s>", add_generation_prompt: prompt };
      return compiled.render({ ...names, messages });
    },
  };
  // As turns.ts and transformers have it, thoughts are there under both names.
  const messages = golden.messages[name]!.map((message) => {
    const thoughts = message["reasoning_content"];
    return typeof thoughts === "string" ? { thinking: thoughts, ...message } : message;
  });
  const chat = { kind: "chat", messages, variables: {}, answersFrom: 0, unlearned: new Set<number>() } as const;
  if (REFUSED.includes(id)) {
    expect(() => renderAnswers(chat, renderer)).toThrow(RowFault);
    return;
  }
  const { text, answers } = renderAnswers(chat, renderer);
  expect(text).toBe(wanted);
  const whole = compiled.renderMarked({ bos_token: "<s>", eos_token: "</s>", add_generation_prompt: false, messages });
  expect(whole.generated.map(({ from, to }) => whole.text.slice(from, to))).toEqual([...marked]); // as transformers finds them
  const [before, after] = AROUND[family]!;
  const theirs = marked
    .filter((answer) => answer !== "</s>") // Phi 3's end of the whole chat
    .map((answer) => answer.replace(before, ""));
  expect(answers.map(({ from, to }) => text.slice(from, to))).toEqual(
    theirs.map((answer) => (after && answer.endsWith(after) ? answer.slice(0, -after.length) : answer)),
  );
});
