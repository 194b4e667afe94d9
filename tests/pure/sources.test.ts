// The same rows from files of every form: the same tokens; and what is damaged, cut off or ragged is refused with its place.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { MloraError } from "../../src/base/errors.ts";
import { rowsOf } from "../../src/data/data-file.ts";
import { type DatasetRecipe, loadDataset } from "../../src/data/dataset.ts";
import { Template } from "../../src/data/jinja.ts";
import { stringifyJson } from "../../src/data/json.ts";
import { openFiles } from "../../src/sources/open.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenTokenizer } from "../helpers/golden-tokenizers.ts";

const GOLDEN = join(import.meta.dir, "..", "golden", "sources");
const folder = mkdtempSync(join(tmpdir(), "mlora-sources-"));
const before = process.env["MLORA_CACHE"];
beforeAll(() => {
  process.env["MLORA_CACHE"] = join(folder, "cache");
});
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  rmSync(folder, { recursive: true });
});

const tokenizer = goldenTokenizer("smollm");
const VOCAB = 1600;

async function load(names: readonly string[], changes: Partial<DatasetRecipe> = {}) {
  const recipe = { ...PLAIN_RECIPE, train: names, ...changes };
  return loadDataset(recipe, tokenizer, VOCAB, new Map(), undefined, await openFiles(names));
}
const tokensOf = async (name: string, changes?: Partial<DatasetRecipe>) =>
  (await load([name], changes)).train.map(({ ids, mask }) => [[...ids], [...mask]]);

async function refused(call: () => Promise<unknown>): Promise<string> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(MloraError);
    const { message, hint = "" } = error as MloraError;
    expect(hint).not.toBe("");
    return message.replaceAll(folder, "");
  }
  throw new Error("expected a MloraError");
}

let files = 0;
function file(ending: string, content: string | Uint8Array): string {
  const path = join(folder, `${++files}.${ending}`);
  writeFileSync(path, content);
  return path;
}
const golden = (name: string): string => join(GOLDEN, name);
const bytesOf = (name: string): Buffer => readFileSync(golden(name));

describe("the same rows", () => {
  const forms = [
    ...["rows.json", "compact.json", "rows.csv", "rows.tsv", "pandas.csv", "rows.jsonl.gz", "rows.jsonl.zst", "rows.csv.gz"],
    ...["none", "snappy", "gzip", "zstd", "brotli", "v2", "pages", "delta", "large"].map((name) => `rows-${name}.parquet`),
  ];
  test.each(forms)("%s has the tokens of rows.jsonl", async (name) => {
    const want = await tokensOf(golden("rows.jsonl"));
    expect(want).toHaveLength(13);
    expect(await tokensOf(golden(name))).toEqual(want);
  });

  test.each(["chat.parquet", "chat.csv"])("%s has the tokens of chat.jsonl", async (name) => {
    const want = await tokensOf(golden("chat.jsonl"));
    expect(want).toHaveLength(2);
    expect(await tokensOf(golden(name))).toEqual(want);
  });

  test.each(["nested-1.parquet", "nested-2.parquet"])("%s, whose rows go over pages, has the rows of nested.jsonl", (name) => {
    const [want, found] = ["nested.jsonl", name].map((of) =>
      [...rowsOf({ name: of, path: golden(of) })].map((row) => ("fields" in row ? stringifyJson(row.fields) : row)),
    );
    expect(want).toHaveLength(90);
    expect(found).toEqual(want!);
  });

  test("values of Parquet print as Python prints them", () => {
    const path = golden("types.parquet");
    const rows = [...rowsOf({ name: path, path })].map((row) => ("fields" in row ? row.fields : {}));
    const said = JSON.parse(readFileSync(golden("types.json"), "utf8")) as Record<string, string>[];
    const flat = Object.keys(said[0]!).filter((key) => key !== "who");
    const print = (value: unknown) => new Template("{{ value }}").render({ value });
    expect(rows.map((row) => flat.map((key) => print(row[key])))).toEqual(said.map((row) => flat.map((key) => row[key]!)));
    expect(rows.map(({ who }) => who as unknown)).toEqual([{ name: "x", ages: [1, 2] }, { ages: [] }, null]);
  });

  test("times of a day, moments of a zone and small decimals print as Python prints them", () => {
    const path = golden("moments.parquet");
    const rows = [...rowsOf({ name: path, path })].map((row) => ("fields" in row ? row.fields : {}));
    const said = JSON.parse(readFileSync(golden("moments.json"), "utf8")) as Record<string, string>[];
    const print = (value: unknown) => new Template("{{ value }}").render({ value });
    expect(rows.map((row) => Object.keys(said[0]!).map((key) => print(row[key])))).toEqual(said.map(Object.values));
  });

  test("columns give fields their rows under other names", async () => {
    const renamed = readFileSync(golden("rows.csv"), "utf8").replace("prompt,completion", "question,answer");
    const columns = { prompt: "question", completion: "answer" };
    expect(await tokensOf(file("csv", renamed), { columns })).toEqual(await tokensOf(golden("rows.jsonl")));
  });

  test("a pattern is its files in the order of their names; a file whose name looks like one is that file", async () => {
    const shards = join(folder, "shards");
    mkdirSync(join(shards, "b"), { recursive: true });
    const row = (text: string) => `${JSON.stringify({ text })}\n`;
    writeFileSync(join(shards, "b", "2.jsonl"), row("two"));
    writeFileSync(join(shards, "1.jsonl"), row("one"));
    writeFileSync(join(shards, "10.jsonl"), row("ten"));
    writeFileSync(join(shards, "x.txt"), "no rows");
    const { train } = await load([join(shards, "**", "*.jsonl")]);
    expect(train.map(({ source }) => basename(source.file))).toEqual(["1.jsonl", "10.jsonl", "2.jsonl"]);
    const odd = join(shards, "[a].jsonl");
    writeFileSync(odd, row("odd"));
    expect((await load([odd])).train).toHaveLength(1);
    expect(await refused(() => load([join(shards, "*.csv")]))).toBe("/shards/*.csv: matches no file");
  });
});

test("the first rows alone are used where a source says so, and each source's rows are counted", async () => {
  const [a, b] = [golden("rows.csv"), golden("rows-pages.parquet")];
  const whole = await tokensOf(golden("rows.jsonl"));
  const { train, sizes, counts } = await load([a, b], { mostRows: { train: [4, null], eval: [] } });
  expect(train.map(({ ids, mask }) => [[...ids], [...mask]])).toEqual([...whole.slice(0, 4), ...whole]);
  expect([sizes, counts.rows]).toEqual([[4, 13], 17]);
  const held = await load([a, b], { evalSplit: 0.3 });
  const fromCsv = held.train.filter(({ source }) => source.file === a).length;
  expect(held.sizes).toEqual([fromCsv, held.train.length - fromCsv]);
  expect(held.train.length + held.eval.length).toBe(26);
});

describe("columns that the rows lack", () => {
  test("are refused, and replaced ones are counted", async () => {
    const path = file("jsonl", '{"prompt": "old", "question": "q", "completion": "c"}\n{"prompt": "p", "completion": "c"}\n');
    const columns = { prompt: "question" };
    expect(await refused(() => load([path], { columns }))).toBe(
      `/${basename(path)}:2: lacks the column 'question' that columns.prompt names`,
    );
    const one = file("jsonl", '{"prompt": "old", "question": "q", "completion": "c"}\n');
    const { train, notices } = await load([one], { columns });
    expect(tokenizer.decode([...train[0]!.ids])).not.toContain("old");
    expect(notices.map(({ kind, example }) => [kind, example])).toContainEqual(["fields", `${one}:1: prompt`]);
  });
});

describe("damage is refused", () => {
  test("a compressed file that is cut off, anywhere, or changed", async () => {
    for (const name of ["rows.jsonl.gz", "rows.jsonl.zst"]) {
      const whole = bytesOf(name);
      for (const end of [whole.length - 1, whole.length - 9, whole.length >> 1, 20, 6]) {
        const message = await refused(() => load([file(name.slice(5), whole.subarray(0, end))]));
        expect(message).toMatch(/^\/\d+\.jsonl\.(gz|zst): is damaged or cut off (gzip|zstd): /);
      }
      const changed = Buffer.from(whole);
      changed[changed.length - 6]! ^= 1;
      if (name.endsWith("gz"))
        expect(await refused(() => load([file("jsonl.gz", changed)]))).toContain("is damaged or cut off gzip");
      const more = Buffer.concat([whole, Buffer.from("more of it")]);
      expect(await refused(() => load([file(name.slice(5), more)]))).toContain("is damaged or cut off");
    }
  });

  test("a Parquet file that is cut off, or whose page has another checksum", async () => {
    const whole = bytesOf("rows-pages.parquet");
    for (const end of [whole.length - 1, whole.length >> 1, 10, 3])
      expect(await refused(() => load([file("parquet", whole.subarray(0, end))]))).toMatch(
        /^\/\d+\.parquet: (is cut off|is no Parquet)/,
      );
    let caught = 0;
    const data = whole.length - 8 - whole.readUInt32LE(whole.length - 8);
    const want = await tokensOf(golden("rows-pages.parquet"));
    for (let at = 4; at < data; at += 7) {
      const changed = Buffer.from(whole);
      changed[at]! ^= 0x10;
      const path = file("parquet", changed);
      try {
        expect(await tokensOf(path)).toEqual(want); // a byte that says nothing
      } catch (error) {
        if (!(error instanceof MloraError)) throw error;
        expect(error.message).toMatch(/: column '(prompt|completion)', rows 1 to 13: /);
        caught++;
      }
    }
    expect(caught).toBeGreaterThan(data / 10);
  });

  test("a Parquet footer that holds something else, in our words", async () => {
    const whole = bytesOf("rows-none.parquet");
    const length = whole.readUInt32LE(whole.length - 8);
    for (const value of [0, 0x11, 0xff]) {
      const damaged = Buffer.from(whole).fill(value, whole.length - 8 - length, whole.length - 8);
      expect(await refused(() => load([file("parquet", damaged)]))).toMatch(/^\/\d+\.parquet: has no readable footer$/);
    }
  });

  test("a Parquet text that is not UTF-8", async () => {
    const whole = bytesOf("rows-none.parquet");
    const at = whole.indexOf(Buffer.from("東"));
    whole[at] = 0xff;
    expect(await refused(() => load([file("parquet", whole)]))).toMatch(
      /column 'prompt', rows 6 to 10: has a text that is not UTF-8$/,
    );
  });

  test("records of CSV that the first line does not fit", async () => {
    const head = "prompt,completion\n";
    const cases: readonly (readonly [string, string])[] = [
      ["a,b\nc\n", ":3: has 1 fields, expected 2 as in the first line"],
      ['"a\nb",c\nd,e,f\n', ":4: has 3 fields, expected 2 as in the first line"],
      ['"a"b,c\n', ":2: has text after the closing quote of field 1"],
      ['a,b\nc,"d\ne\n', ":3: field 2 of the record that begins here has a quote that never closes"],
    ];
    for (const [rows, message] of cases) {
      const path = file("csv", head + rows);
      expect(await refused(() => load([path]))).toBe(`/${basename(path)}${message}`);
    }
    for (const [first, message] of [
      ["a,a\n1,2\n", ":1: two columns are called 'a'"],
      ["a,\n1,2\n", ":1: column 2 has no name"],
      ["prompt;completion\n1;2\n", ":1: the columns are separated by ';', expected ','"],
    ] as const)
      expect(await refused(() => load([file("csv", first)]))).toContain(message);
    expect(await refused(() => load([file("csv", Buffer.from([...Buffer.from(`${head}a,`), 0xff, 0x0a]))]))).toContain(
      "is not UTF-8 text",
    );
  });

  test("a JSON list that is cut off, or that something follows", async () => {
    const whole = bytesOf("rows.json");
    const path = file("json", whole.subarray(0, whole.length - 2));
    expect(await refused(() => load([path]))).toBe(`/${basename(path)}: ends within its list, after 12 rows`);
    expect(await refused(() => load([file("json", '[{"text": "a"}] {"text": "b"}')]))).toContain(
      "has more after the end of its list",
    );
    expect(await refused(() => load([file("json", '[{"text": "a"}, 5, {"text": 1}, {"text": "b"} {"text": "c"}]')]))).toMatch(
      /:2: is no JSON object: 5\n.*:3: has 1 in 'text'.*\n.*:4: is no JSON/,
    );
    expect(await refused(() => load([file("json", " [ ] ")]))).toContain("has no row");
  });

  test("what is under a wrong ending, or is not there", async () => {
    const wrong = join(folder, "wrong.parquet");
    copyFileSync(golden("rows.jsonl"), wrong);
    expect(await refused(() => load([wrong]))).toBe("/wrong.parquet: is no Parquet file");
    expect(await refused(() => load([join(folder, "none.csv")]))).toBe("/none.csv: no such file");
    expect(await refused(() => load([file("csv", "")]))).toContain("is empty");
  });
});
