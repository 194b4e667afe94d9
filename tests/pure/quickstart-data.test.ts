// The quickstart's data: what its exact-match figures rest on. Not whether a model learns from it.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const DATA = join(import.meta.dir, "../../recipes/data");

type Row = { readonly question: string; readonly answer: string };
type Raw = Readonly<Record<string, unknown>>;

const READ: Readonly<Record<string, (raw: Raw) => Row>> = {
  dates: (raw) => ({ question: text(raw["prompt"]), answer: text(raw["completion"]) }),
  tickets: (raw) => {
    const [user, assistant, ...more] = raw["messages"] as readonly { role: string; content: string }[];
    expect([user?.role, assistant?.role, more.length]).toEqual(["user", "assistant", 0]);
    return { question: text(user?.content), answer: text(assistant?.content) };
  },
  find: (raw) => ({ question: `${text(raw["instruction"])} ${text(raw["input"])}`, answer: text(raw["output"]) }),
};

/** What a right answer looks like, whoever wrote it. */
const ANSWER: Readonly<Record<string, RegExp>> = {
  dates: /^(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$/,
  tickets: /^\{"team": "(billing|shipping|returns|technical|account)", "order": (\d{5}|null), "urgent": (true|false)\}$/,
  find: /^find \S+ -name '\*\.\w+'( -(size [+-]\d+[kMG]|mtime [+-]\d+|empty))?( -delete| \| wc -l)?$/,
};

function text(value: unknown): string {
  if (typeof value !== "string" || value === "") throw new Error(`expected a text, found ${JSON.stringify(value)}`);
  return value;
}

function rows(task: string, part: string): readonly Row[] {
  const lines = readFileSync(join(DATA, task, `${part}.jsonl`), "utf8")
    .trimEnd()
    .split("\n");
  return lines.map((line) => READ[task]!(JSON.parse(line)));
}

describe.each(Object.keys(READ))("%s", (task) => {
  const train = rows(task, "train");
  const held = rows(task, "eval");

  test("has a few hundred rows to learn from and fifty held out", () => {
    expect([train.length, held.length]).toEqual([300, 50]);
  });

  test("every answer has the form that the task asks for", () => {
    for (const { answer } of [...train, ...held]) expect(answer).toMatch(ANSWER[task]!);
  });

  test("no question is asked twice, so none is held out and learned", () => {
    expect(new Set([...train, ...held].map((row) => row.question)).size).toBe(350);
  });

  test("what is asked for in a held-out row is not in train under other words", () => {
    // a ticket without an order number is told apart by its words alone: the test above
    const key = (row: Row): string | undefined => (task === "tickets" ? /\d{5}/.exec(row.answer)?.[0] : row.answer);
    const learned = new Set(train.map(key));
    expect(held.map(key).filter((held) => held !== undefined && learned.has(held))).toEqual([]);
  });
});
