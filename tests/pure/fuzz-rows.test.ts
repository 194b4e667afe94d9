// 20,000 random rows over ten chat templates: a row is refused by a RowFault, or every word of every turn that is learned is in
// what is learned, or a notice tells that it is not; and nothing that others say is learned.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import type { TokenisedRow } from "../../src/data/fit-row.ts";
import { parseJson } from "../../src/data/json.ts";
import { type Fields, RowFault } from "../../src/data/jsonl.ts";
import { NoticeBook, type NoticeKind } from "../../src/data/notices.ts";
import { rowReader } from "../../src/data/row-reader.ts";
import { loadTokenizer, type Tokenizer } from "../../src/data/tokenizer.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { writeByteTokenizer } from "../helpers/model.ts";
import { RowMaker } from "../helpers/random-rows.ts";

const ROWS = 20_000;
const NAMES = ["qwen3", "llama3_1", "gemma3", "phi3", "deepseekv3", "gptoss", "glm4moe", "cohere2", "lfm2", "qwen3_5_think"];
const GOLDEN = join(import.meta.dir, "..", "golden", "jinja", "templates.json.gz");

const work = mkdtempSync(join(tmpdir(), "mlora-fuzz-rows-"));
afterAll(() => rmSync(work, { recursive: true }));

/** A tokenizer of bytes whose special tokens are the marks that the template writes. */
function tokenizerOf(name: string, template: string): Tokenizer {
  const folder = join(work, name);
  mkdirSync(folder);
  const marks = [...new Set(template.match(/<[|｜][^<>'"\s]{1,40}[|｜]>|<(?:start|end)_of_turn>|\[\/?[A-Z_]{3,20}\]/g))];
  writeByteTokenizer(folder, marks, { bos_token: "<|bos|>", chat_template: template });
  return loadTokenizer(folder);
}

const OBJECTIVES = {
  single: { name: "sft" },
  paired: { name: "orpo", lambda: 0.1 },
  labelled: { name: "kto", beta: 0.1, desirable: 1, undesirable: 1, reference: "start" },
} as const;
const THOUGHTS = ["as-template", "as-template", "every-turn", "drop"] as const;

const words = (value: unknown): string[] => JSON.stringify(value ?? "").match(/w\d+q/g) ?? [];
const isAssistant = (turn: unknown): turn is Record<string, unknown> => {
  const { role, from } = (turn ?? {}) as Record<string, unknown>;
  return role === "assistant" || (role === undefined && from === "gpt");
};

/** What the answers of a row say, by a reading of its own: the words that are to be learned, thoughts apart. */
function answersIn(fields: Fields, form: keyof typeof OBJECTIVES): { said: string[]; thoughts: string[]; others: string[] } {
  const lists = form === "single" ? ["messages", "conversations"] : [];
  const answers = form === "paired" ? ["chosen", "rejected"] : ["completion"];
  const [said, thoughts, others]: [string[], string[], string[]] = [[], [], []];
  const used = lists.filter((name) => name in fields).slice(0, 1);
  const read = (value: unknown, counts: boolean): void => {
    for (const turn of Array.isArray(value) ? value : [{ role: counts ? "assistant" : "user", content: value }]) {
      const {
        weight,
        train,
        reasoning_content: a,
        reasoning: b,
        thinking: c,
        content,
        tool_calls: calls,
      } = (turn ?? {}) as Record<string, unknown>;
      if (!counts || !isAssistant(turn) || weight === 0 || train === false) {
        if (!isAssistant(turn)) others.push(...words(content));
        continue;
      }
      const text = typeof content === "string" ? content : JSON.stringify(content ?? "");
      const [, inside = "", rest = text] = /^\s*<think>([\s\S]*?)<\/think>([\s\S]*)$/.exec(text) ?? [];
      thoughts.push(...words(inside), ...words([a, b, c]));
      said.push(...words(rest), ...words(calls));
    }
  };
  if (used.length > 0) read(fields[used[0]!], true);
  else {
    read(fields["prompt"], false);
    for (const name of answers) read(fields[name], true);
  }
  return { said, thoughts, others };
}

test(`${ROWS} rows over ${NAMES.length} templates lose nothing without a word`, () => {
  const templates = JSON.parse(new TextDecoder().decode(Bun.gunzipSync(readFileSync(GOLDEN)))) as Record<string, string>;
  const tokenizers = NAMES.map((name) => tokenizerOf(name, templates[name]!));
  const rng = new Rng(0xf0225);
  const maker = new RowMaker(rng);
  const accepted = NAMES.map(() => 0);
  const told = new Map<NoticeKind, number>();
  for (let i = 0; i < ROWS; i++) {
    const at = i % NAMES.length;
    const tokenizer = tokenizers[at]!;
    const form = (["single", "single", "paired", "labelled"] as const)[rng.below(4)]!;
    const thoughts = THOUGHTS[rng.below(THOUGHTS.length)]!;
    const { text } = maker.row(form);
    const where = `row ${i}, ${NAMES[at]}, ${form}, ${thoughts}: ${text}`;
    const book = new NoticeBook();
    let rows: readonly TokenisedRow[];
    const fields = parseJson(text) as Fields;
    try {
      const read = rowReader({ ...PLAIN_RECIPE, maxLength: 1 << 20, objective: OBJECTIVES[form], thoughts }, tokenizer);
      rows = read(fields, { file: "rows.jsonl", line: i + 1 }, book);
    } catch (error) {
      if (!(error instanceof RowFault)) throw new Error(where, { cause: error });
      continue;
    }
    accepted[at]!++;
    const kinds = new Set(book.notices.map(({ kind }) => kind));
    for (const kind of kinds) told.set(kind, (told.get(kind) ?? 0) + 1);
    const sequences = rows.flatMap(({ own, other }) => (other ? [own, other] : [own]));
    const learned = sequences.map(({ ids, mask }) => tokenizer.decode(ids.filter((_, n) => mask[n] === 1)));
    const all = learned.join("\n");
    const wanted = answersIn(fields, form);
    const isTold = kinds.has("answers") || kinds.has("tool calls");
    const lost = wanted.said.filter((word) => !all.includes(word));
    if (lost.length > 0 && !isTold) throw new Error(`lost without a word: ${lost}; ${where}`);
    const thought = wanted.thoughts.filter((word) => !all.includes(word));
    if (thoughts !== "drop" && thought.length > 0 && !kinds.has("thoughts") && !isTold)
      throw new Error(`thoughts lost without a word: ${thought}; ${where}`);
    if (thoughts === "drop" && wanted.thoughts.some((word) => all.includes(word)))
      throw new Error(`thoughts are left; ${where}`);
    const foreign = wanted.others.filter((word) => all.includes(word));
    if (foreign.length > 0) throw new Error(`learned of others: ${foreign}; ${where}`);
    for (const text of learned) {
      const twice = words(text).filter((word, n, every) => every.indexOf(word) !== n);
      if (twice.length > 0) throw new Error(`learned twice: ${twice}; ${where}`);
    }
  }
  // The check is about rows that are read: each template reads a good part of them, and some kinds of loss occur.
  for (const [i, count] of accepted.entries()) expect([NAMES[i], count > ROWS / NAMES.length / 5]).toEqual([NAMES[i], true]);
  expect(told.get("thoughts") ?? 0).toBeGreaterThan(50);
}, 300_000);
