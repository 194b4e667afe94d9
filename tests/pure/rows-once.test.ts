// What a row says twice is there once, and what it says in a second place is there at all: prompts next to whole conversations,
// parts of a content, turns that are written as text.

import { describe, expect, test } from "bun:test";
import { refused } from "../helpers/refused.ts";
import { assistant, DPO, learnedOf, lines, rowFiles, smollm, textOf, told, user } from "../helpers/rows.ts";

const { load } = rowFiles("once");
const system = (content: string) => ({ role: "system", content });
const KTO = { objective: { name: "kto", beta: 0.1, desirable: 1, undesirable: 1, reference: "start" } } as const;

/** What a row's sequences read and learn. */
const said = (row: object, more: Parameters<typeof load>[1] = {}) =>
  load(lines(row), more, smollm).train.map((sample) =>
    [sample, ...(sample.other ? [sample.other] : [])].map((of) => [textOf(of, smollm), learnedOf(of, smollm)]),
  );
const why = (row: object, more: Parameters<typeof load>[1] = {}) => refused(() => load(lines(row), more, smollm)).message;

describe("an answer that is a whole conversation", () => {
  const [better, worse] = [assistant("Good"), assistant("Bad")];
  const apart = said({ prompt: [user("Hi")], chosen: [better], rejected: [worse] }, DPO);
  const led = said({ prompt: [system("S"), user("Hi")], chosen: [better], rejected: [worse] }, DPO);

  test.each([
    ["in both answers", { chosen: [user("Hi"), better], rejected: [user("Hi"), worse] }],
    ["in one of them", { chosen: [user("Hi"), better], rejected: [worse] }],
    ["with keys in another order", { chosen: [{ content: "Hi", role: "user" }, better], rejected: [user("Hi"), worse] }],
    ["with keys of null", { chosen: [{ ...user("Hi"), name: null }, better], rejected: [user("Hi"), worse] }],
    ["in ShareGPT's words", { chosen: [{ from: "human", value: "Hi" }, better], rejected: [user("Hi"), worse] }],
    ["as a part", { chosen: [{ role: "user", content: [{ type: "text", text: "Hi" }] }, better], rejected: [worse] }],
  ])("has its prompt once: %s", (_, answers) => {
    expect(said({ prompt: [user("Hi")], ...answers }, DPO)).toEqual(apart);
    if (answers.chosen.length === answers.rejected.length) expect(said(answers, DPO)).toEqual(apart);
  });

  test("has a system message before the prompt that stands next to it", () => {
    const whole = { chosen: [system("S"), user("Hi"), better], rejected: [system("S"), user("Hi"), worse] };
    expect(said({ prompt: [user("Hi")], ...whole }, DPO)).toEqual(led);
    expect(why({ prompt: [user("Hi")], ...whole, rejected: [worse] }, DPO)).toContain("answers to different prompts");
  });

  test("of prompts with a completion, too, and of labelled ones", () => {
    const [own] = said({ prompt: [user("Hi")], completion: [better] });
    for (const prompt of ["Hi", [user("Hi")]]) expect(said({ prompt, completion: [user("Hi"), better] })).toEqual([own!]);
    const labelled = (completion: object[]) =>
      lines({ prompt: "Hi", completion, label: true }, { prompt: "a", completion: "b", label: false });
    const ids = (completion: object[]) => load(labelled(completion), KTO, smollm).train.map((sample) => [...sample.ids]);
    expect(ids([user("Hi"), better])).toEqual(ids([better]));
  });

  test("is asked by the prompt that stands next to it as a string, where it begins with an answer", () => {
    expect(said({ prompt: "Hi", chosen: [better], rejected: [worse] }, DPO)).toEqual(apart);
    const after = [assistant("a"), user("b")];
    const longer = { prompt: "Hi", chosen: [...after, better], rejected: [...after, worse] };
    expect(said(longer, DPO)).toEqual(said({ prompt: [user("Hi"), ...after], chosen: [better], rejected: [worse] }, DPO));
  });

  test("does not say the words of a prompt next to it: a notice", () => {
    const whole = { chosen: [user("Hi"), better], rejected: [user("Hi"), worse] };
    expect(told(load(lines({ prompt: "Be a pirate. Hi", ...whole }), DPO, smollm), "fields")?.example).toEndWith(": prompt");
    expect(told(load(lines({ prompt: "Hi\n", ...whole }), DPO, smollm), "fields")).toBeNull();
  });
});

test("turns that are written as text are not a prompt's words", () => {
  const python = "[{'role': 'user', 'content': 'Hi'}]";
  for (const prompt of [JSON.stringify([user("Hi")]), python, `\n[ { "content": "Hi", "role": "user" } ]`]) {
    expect(why({ prompt, completion: "Good" })).toContain("has turns as text in 'prompt'");
    expect(why({ prompt, chosen: "Good", rejected: "Bad" }, DPO)).toContain("has turns as text in 'prompt'");
    expect(said({ prompt: [user(prompt)], completion: "Good" })[0]![0]![0]).toContain(prompt);
  }
  expect(said({ prompt: "[1, 2]", completion: JSON.stringify([user("Hi")]) })).toHaveLength(1);
});

test("a part of a content has nothing besides its text, a turn no second content", () => {
  const asked = (content: unknown) => ({ messages: [{ role: "user", content }, assistant("b")] });
  const text = { type: "text", text: "a" };
  expect(said(asked([text, { ...text, image_url: null, annotations: [], cache_control: { type: "ephemeral" } }]))).toEqual(
    said(asked("aa")),
  );
  expect(why(asked([text, { ...text, image_url: { url: "https://example.org/a.png" } }]))).toContain(
    "has 'image_url' in messages[0].content[1]",
  );
  const turn = (more: object) => ({
    conversations: [
      { from: "human", value: "a", ...more },
      { from: "gpt", value: "b" },
    ],
  });
  expect(said(turn({ content: "a" }))).toEqual(said(turn({})));
  expect(why(turn({ content: "c" }))).toContain("has conversations[0].value and another conversations[0].content");
});
