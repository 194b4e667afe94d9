// Rows that several threads read are the rows that one reads, in order, whatever form they come in; so are notices and faults.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MessageChannel, Worker } from "node:worker_threads";
import { MloraError } from "../../src/base/errors.ts";
import { range } from "../../src/base/shape.ts";
import { type DatasetRecipe, loadDataset } from "../../src/data/dataset.ts";
import { floatOf, objectOf, parseJson, parseOwnJson, stringifyJson } from "../../src/data/json.ts";
import { PLACE, placeOfThread } from "../../src/data/place.ts";
import { RowPool } from "../../src/data/row-pool.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenFolder } from "../helpers/golden-tokenizers.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-pool-"));
const model = goldenFolder("qwen3");
const tokenizer = loadTokenizer(model);
const workers: Worker[] = [];
afterAll(async () => {
  await Promise.all(workers.map((worker) => worker.terminate()));
  rmSync(folder, { recursive: true });
});

const ROWS = 2100; // three chunks
const chat = (i: number) => ({
  messages: [
    { role: "user", content: `What is ${i}? ${"é ".repeat(i % 7)}` },
    { role: "assistant", content: `<think>t${i % 5}</think>${"x ".repeat(1 + (i % 40))}` },
  ],
  ...(i % 700 === 0 ? { unused: 1 } : {}),
});
const pair = (i: number) => ({ prompt: `p${i}`, completion: `${"c".repeat(1 + (i % 30))} ${i}`, label: i % 3 === 0 });
const jsonl = (rows: readonly unknown[]) =>
  rows.map((row) => `${typeof row === "string" ? row : JSON.stringify(row)}\n`).join("");
const chats = range(ROWS).map(chat);
const pairs = range(ROWS).map(pair);
const template = { prompt: "{{ a }} {{ b }}", completion: "{{ c }}" };
const numbers = range(ROWS).map((i) => `{"a": ${i}.0, "b": ${"9".repeat(20)}, "c": {"2": 1, "1": "\\u00e9"}}`);
const files: Readonly<Record<string, string>> = {
  "chats.jsonl": jsonl(chats),
  "numbers.jsonl": jsonl(numbers),
  "pairs.json": JSON.stringify(pairs),
  "pairs.csv": `prompt,completion,label\n${pairs.map((row) => Object.values(row).join(",")).join("\n")}\n`,
  "blank.jsonl": jsonl(pairs.flatMap((row, i) => (i % 2 === 0 ? [row, ""] : [row]))),
  "bad.jsonl": jsonl(pairs.map((row, i) => (i % 999 === 998 ? { prompt: "p" } : row))),
  "worse.jsonl": jsonl(pairs.map((row, i) => (i > 1500 && i % 100 === 7 ? "{" : row))),
  "mixed.jsonl": jsonl(pairs.map((row, i) => (i === 1024 || i === 1026 ? { text: "another form" } : row))),
  "bad.csv": `prompt,completion\n${range(ROWS)
    .map((i) => (i === 2050 ? "a" : "a,b"))
    .join("\n")}\n`,
  "cut.json": JSON.stringify(pairs).slice(0, -9).replace('"p7"', "7"),
};
for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);

/** A pool of two threads that have yet to start. */
function poolOf() {
  const bell = new Int32Array(new SharedArrayBuffer(4));
  const places = new Float64Array(new SharedArrayBuffer(2 * 8 * PLACE.numbers));
  const channels = range(2).map(() => new MessageChannel());
  const start = () => {
    for (const [i, { port2 }] of channels.entries()) {
      const data = { port: port2, bell, model, names: Object.keys(files), place: placeOfThread(places, i) };
      workers.push(
        new Worker(new URL("../../src/data/row-worker.ts", import.meta.url), { workerData: data, transferList: [port2] }),
      );
    }
  };
  const readByThem = () => range(2).reduce((all, i) => all + placeOfThread(places, i)[PLACE.rows]!, 0);
  return {
    pool: new RowPool(
      channels.map(({ port1 }) => port1),
      bell,
      start,
      1,
    ),
    readByThem,
  };
}
const { pool, readByThem } = poolOf();

function outcome(name: string, changes: Partial<DatasetRecipe>, by: RowPool | null): unknown {
  const recipe = { ...PLAIN_RECIPE, train: [name], maxLength: 60, ...changes };
  const opened = new Map([[name, [{ name, path: join(folder, name) }]]]);
  try {
    const { train, counts, notices } = loadDataset(recipe, tokenizer, 2000, new Map(), {}, opened, null, by);
    const rows = [...train].map(
      ({ ids, mask, other, label, columns, source }) => `${ids};${mask};${other?.ids};${label};${columns};${source.line}`,
    );
    return { rows: rows.length, all: Bun.hash.crc32(rows.join("\n")), counts, notices };
  } catch (error) {
    if (!(error instanceof MloraError)) throw error;
    return { code: error.code, message: error.message, hint: error.hint };
  }
}

/** Of prompts, all columns are kept. */
const PROMPTS = { name: "grpo", maxNewTokens: 3 } as DatasetRecipe["objective"];

test.each<[string, Partial<DatasetRecipe>]>([
  ["chats.jsonl", {}],
  ["chats.jsonl", { thoughts: "every-turn", maxLength: 20, overlong: "drop" }],
  ["numbers.jsonl", { format: "template", template }],
  ["pairs.json", {}],
  ["pairs.csv", { objective: { name: "kto", beta: 0.1 } as DatasetRecipe["objective"] }],
  ["chats.jsonl", { objective: PROMPTS, maxLength: 32 }],
  ["numbers.jsonl", { objective: PROMPTS, format: "template", template }],
  ["blank.jsonl", { mostRows: { train: [2099], eval: [] } }],
  ["blank.jsonl", {}],
  ["bad.jsonl", {}],
  ["worse.jsonl", {}],
  ["mixed.jsonl", {}],
  ["mixed.jsonl", { objective: { name: "grpo" } as DatasetRecipe["objective"] }],
  ["bad.csv", {}],
  ["cut.json", {}],
])(
  "%s, %j",
  async (name, changes) => {
    const alone = outcome(name, changes, null);
    const before = readByThem();
    // Threads take a while to start: until then the reader reads all rows itself.
    for (const deadline = performance.now() + 60_000; ; await Bun.sleep(20)) {
      expect(outcome(name, changes, pool)).toEqual(alone);
      if (readByThem() > before) break;
      if (performance.now() > deadline) throw new Error("no thread has read a row within 60 s");
    }
  },
  120_000,
);

test("a value is the same after JSON of our own", () => {
  const values = [
    [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, "NaN", { Infinity: -0.5 }],
    parseJson('{"2": 1.0, "1": 123456789012345678901234567890, "a": -0.0}'),
    objectOf([
      ["9", "\ud83d"],
      ["8", null],
      ["x", [floatOf(1e21), 0.1, 12345678901234567890n, true]],
    ]),
  ];
  for (const value of values) {
    const again = parseOwnJson(stringifyJson(value)!);
    expect(again).toEqual(value as never);
    expect(stringifyJson(again)).toBe(stringifyJson(value));
  }
});
