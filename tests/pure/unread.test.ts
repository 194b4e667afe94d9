// Rows that are found without parsing them, and read when they are asked for: the same as those that are read in order.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { rowsOf } from "../../src/data/data-file.ts";
import { type Dataset, type DatasetRecipe, loadDataset } from "../../src/data/dataset.ts";
import { placesOf, type RowPlaces } from "../../src/data/row-places.ts";
import { isSame, RowsDiffer, UnreadData } from "../../src/data/unread.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenTokenizer } from "../helpers/golden-tokenizers.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-unread-"));
afterAll(() => rmSync(folder, { recursive: true }));
let made = 0;
const fileOf = (content: string | Uint8Array, ending = "jsonl"): string => {
  const path = join(folder, `${made++}.${ending}`);
  writeFileSync(path, content);
  return path;
};
function found(path: string): RowPlaces | null {
  const places = placesOf({ name: path, path });
  for (let step = places.next(); ; step = places.next()) if (step.done) return step.value;
}

/** Lines of every kind, rows among them, in pieces larger than what is read at a time. */
function randomLines(rng: Rng): string {
  const spaces = () =>
    range(rng.below(4))
      .map(() => " \t\r"[rng.below(3)]!)
      .join("");
  const row = (i: number) =>
    JSON.stringify({ prompt: `${i} é\n`, completion: "x".repeat(rng.below(20) === 0 ? 300_000 : rng.below(50)) });
  const kinds = [row, row, row, () => "", spaces, () => "no JSON", (i: number) => `${spaces()}${row(i)}${spaces()}`];
  const lines = range(60 + rng.below(60)).map((i) => kinds[rng.below(kinds.length)]!(i));
  return `${rng.below(2) === 0 ? "\ufeff" : ""}${lines.join("\n")}${rng.below(2) === 0 ? "\n" : ""}`;
}

test.each(range(12))("each row of a file of lines is found where it is (seed %d)", (seed) => {
  const path = fileOf(randomLines(new Rng(seed, 0x11e5)));
  const inOrder = [...rowsOf({ name: path, path })].map(({ source, ...of }) => ({ line: source.line, ...of }));
  using places = found(path)!;
  expect([...places.lines]).toEqual(inOrder.map(({ line }) => line));
  const order = new Rng(seed).shuffle(Int32Array.from(places.lines.keys()));
  for (const row of order) expect({ line: places.lines[row]!, ...places.read(row)! }).toEqual(inOrder[row]!);
});

test.each(["rows-none", "rows-snappy", "rows-v2", "rows-pages", "rows-delta", "nested-1", "nested-2", "types", "chat"])(
  "each row of %s.parquet is found where it is",
  (name) => {
    const path = join(import.meta.dir, "..", "golden", "sources", `${name}.parquet`);
    const inOrder = [...rowsOf({ name: path, path })].map(({ source, ...of }) => ({ line: source.line, ...of }));
    using places = found(path)!;
    expect([...places.lines]).toEqual(inOrder.map(({ line }) => line));
    for (const order of [Int32Array.from(places.lines.keys()), new Rng(7).shuffle(Int32Array.from(places.lines.keys()))])
      for (const row of order) expect({ line: places.lines[row]!, ...places.read(row)! }).toEqual(inOrder[row]!);
  },
);

test("a file whose lines may be blank in other ways, or whose rows are no lines, has no places", () => {
  expect(found(fileOf('{"a": 1}\n\u00a0\n{"a": 2}\n'))).toBe(null);
  expect(found(fileOf('[{"a": 1}]', "json"))).toBe(null);
  expect(found(fileOf("a\n1\n", "csv"))).toBe(null);
});

const tokenizer = goldenTokenizer("smollm");
const row = (i: number) => ({ prompt: `What is ${i}?`, completion: `${i} ${"word ".repeat(i % 7)}` });
const lines = (rows: readonly object[]) => rows.map((of, i) => `${JSON.stringify(of)}\n${i % 9 === 0 ? "\n" : ""}`).join("");
const read = (recipe: DatasetRecipe): Dataset => loadDataset(recipe, tokenizer, 100_000);
async function unread(recipe: DatasetRecipe) {
  const files = new Map([...recipe.train, ...recipe.eval].map((path) => [path, [{ name: path, path }]]));
  return await UnreadData.open([recipe], { tokenizer, vocab: 100_000, files, signal: new AbortController().signal });
}

const [one, other] = [fileOf(lines(range(90).map(row))), fileOf(lines(range(40).map((i) => row(200 + i))))];
const pairs = fileOf(
  lines(range(50).map((i) => ({ prompt: `p${i}`, chosen: `yes ${i}`, rejected: `no ${"o".repeat(i % 5)}` }))),
);
const RECIPES: Readonly<Record<string, Partial<DatasetRecipe>>> = {
  "two files": { train: [one, other] },
  "a share held out": { train: [one, other], evalSplit: 0.2 },
  "the same file twice": { train: [one, one], evalSplit: 0.1 },
  "a file held out": { train: [one], eval: [other] },
  "the first rows of each": { train: [one, other], mostRows: { train: [7, null], eval: [] } },
  "rows that are cut": { train: [one], maxLength: 10, chatTemplate: false },
  preferences: { train: [pairs], objective: { name: "orpo", lambda: 0.1 }, evalSplit: 0.1 },
};

test.each(Object.entries(RECIPES))("rows are the same when they are asked for in any order: %s", async (_, more) => {
  const recipe = { ...PLAIN_RECIPE, ...more };
  const whole = read(recipe);
  const { datasets, data } = (await unread(recipe))!;
  using _data = data;
  const [of] = datasets;
  expect([of!.train.length, of!.eval.length, of!.sizes]).toEqual([whole.train.length, whole.eval.length, whole.sizes]);
  for (const i of new Rng(3).shuffle(Int32Array.from(whole.train.keys()))) expect(of!.train[i]).toEqual(whole.train[i]!);
  expect([...of!.eval]).toEqual([...whole.eval]);
  expect(isSame(of!, whole)).toBe(true);
});

test("adapters that hold out the same rows share them; those that hold out others do not", async () => {
  const shares = [0.2, 0.2, 0.3].map((evalSplit): DatasetRecipe => ({ ...PLAIN_RECIPE, train: [one], evalSplit }));
  const recipes = [...shares, { ...shares[0]!, maxLength: 500 }];
  const files = new Map([[one, [{ name: one, path: one }]]]);
  const options = { tokenizer, vocab: 100_000, files, signal: new AbortController().signal };
  const { datasets, data } = (await UnreadData.open(recipes, options))!;
  using _data = data;
  const [a, b, c, d] = datasets.map((of) => of.eval);
  expect([a === b, a === c, a === d]).toEqual([true, false, false]);
  for (const [i, recipe] of recipes.entries()) expect([...datasets[i]!.eval]).toEqual([...read(recipe).eval]);
});

test("rows that turn out others are seen: one dropped, one changed, one more", async () => {
  const recipe = { ...PLAIN_RECIPE, train: [one] };
  const { datasets, data } = (await unread(recipe))!;
  using _data = data;
  void datasets[0]!.train[30];
  const rows = range(90).map(row);
  for (const changed of [rows.toSpliced(50, 1), rows.with(30, row(31)), [...rows, row(90)]]) {
    writeFileSync(one, lines(changed));
    expect(isSame(datasets[0]!, read(recipe))).toBe(false);
  }
  writeFileSync(one, lines(rows));
  expect(isSame(datasets[0]!, read(recipe))).toBe(true);
});

test("a row at fault is no row", async () => {
  const bad = (good: number) => fileOf(lines([...range(good).map(row), { prompt: "p" }]));
  await expect(unread({ ...PLAIN_RECIPE, train: [bad(5)] })).rejects.toThrow(RowsDiffer); // all of few are looked at
  const { datasets, data } = (await unread({ ...PLAIN_RECIPE, train: [bad(199)] }))!;
  using _data = data;
  expect(() => datasets[0]!.train[199]).toThrow(RowsDiffer);
});
