// The day that a chat template writes is a fixed one, or that of `date_string`; what is no day is refused

import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { writeByteTokenizer } from "../helpers/model.ts";
import { refused } from "../helpers/refused.ts";
import { assistant, lines, rowFiles, smollm, textOf, told, user } from "../helpers/rows.ts";

const { load, fileOf } = rowFiles("date");
const body = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";
const dated = fileOf(`{{ strftime_now('%d.%m.%Y') + '\n' }}${body}`, "dated.jinja");
const undated = fileOf(`{{ date_string + '\n' }}${body}`, "undated.jinja");
const rows = lines({ messages: [user("a"), assistant("b")] });

const textWith = (chatTemplate: string, chatVariables: Readonly<Record<string, unknown>>) => {
  const read = load(rows, { chatTemplate, chatVariables }, smollm);
  return { day: textOf(read.train[0]!, smollm).split("\n")[0], told: told(read, "today") !== null };
};

test("strftime_now gives the fixed day, or that of date_string in several forms", () => {
  expect(textWith(dated, {})).toEqual({ day: "26.07.2024", told: true });
  expect(textWith(dated, { date_string: null }).day).toBe("26.07.2024");
  for (const day of ["2026-01-05", "5 Jan 2026", "05 January 2026", "January 5, 2026"])
    expect(textWith(dated, { date_string: day }).day).toBe("05.01.2026");
});

test("a date_string that is no day is refused where a template asks for the day, and is its own text elsewhere", () => {
  for (const day of ["today", "05/01/2026", "2026-02-30", "", 2026])
    expect(refused(() => textWith(dated, { date_string: day })).message).toContain(`date_string is '${day}', expected a day`);
  expect(textWith(undated, { date_string: "Q1 2026" })).toEqual({ day: "Q1 2026", told: false });
});

test("the notice counts the rows whose rendering asks for the day, by either template, and no row after them", () => {
  const asking = `{% if messages[0].content == 'when' %}{{ strftime_now('%d.%m.%Y') }}{% endif %}${body}`;
  const chat = (content: string, more: object = {}) => ({ messages: [user(content), assistant("b")], ...more });
  const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
  const some = lines(chat("a"), chat("when"), chat("a"), chat("when", { tools }), chat("a", { tools }), chat("a"));
  const folder = mkdtempSync(join(tmpdir(), "mlora-date-"));
  try {
    const named = ["default", "tool_use"].map((name) => ({ name, template: asking }));
    writeByteTokenizer(folder, [], { chat_template: named });
    expect(told(load(some, {}, loadTokenizer(folder)), "today")?.rows).toBe(2);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
