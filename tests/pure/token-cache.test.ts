// Rows kept as tokens: read again they are the same, whatever the file is called; what differs or is damaged is made again.

import { afterAll, beforeEach, expect, test } from "bun:test";
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { range, sum } from "../../src/base/shape.ts";
import { type Dataset, type DatasetRecipe, loadDataset } from "../../src/data/dataset.ts";
import type { TokenCache } from "../../src/data/file-rows.ts";
import { digestOf } from "../../src/data/row-digest.ts";
import { buffersOf, opened, pack, RowPacker, sendable, unpack } from "../../src/data/rows.ts";
import { mapTokens } from "../../src/data/token-file.ts";
import { trim } from "../../src/sources/cache.ts";
import { keptDigestOf } from "../../src/sources/tokens.ts";
import { PLAIN_RECIPE } from "../helpers/dataset.ts";
import { goldenTokenizer } from "../helpers/golden-tokenizers.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-tokens-"));
afterAll(() => rmSync(folder, { recursive: true }));
const shelf = join(folder, "tokens");
beforeEach(() => {
  rmSync(shelf, { recursive: true, force: true });
  mkdirSync(shelf);
});

const tokenizer = goldenTokenizer("smollm");
const cache: TokenCache = { folder: shelf, maker: "a program", leastBytes: 1 };
const path = join(folder, "rows.jsonl");
const ROWS = 150;
const PAIRS = range(ROWS).map((i) => ({
  prompt: `question ${i}`,
  chosen: `yes ${i * 7}`,
  rejected: `no ${i}`,
  completion: `${i}`.repeat(1 + (i % 90)),
  label: i % 3 === 0,
  more: "x",
}));
writeFileSync(path, PAIRS.map((row) => `${JSON.stringify(row)}\n`).join(""));
const hashOf = (file: string): string => new Bun.CryptoHasher("sha256").update(readFileSync(file)).digest("hex");

/** Reads the rows, and says how many were read anew. */
function load(
  changes: Partial<DatasetRecipe> = {},
  kept: TokenCache | null = cache,
  file = path,
): { data: Dataset; read: number } {
  let read = 0;
  const count = (place: unknown) => {
    read += Number(place !== null);
  };
  const recipe = { ...PLAIN_RECIPE, train: ["name"], format: "prompt-completion" as const, maxLength: 100, ...changes };
  const files = new Map([["name", [{ name: file, path: file, hash: hashOf(file) }]]]);
  const data = loadDataset(recipe, tokenizer, 1600, new Map(), { begin: count }, files, kept);
  return { data, read };
}
const plain = ({ train, eval: held, counts, notices }: Dataset) => ({
  ...{ counts, notices },
  rows: [...train, ...held].map(({ ids, mask, other, label, source }) => [
    [...ids],
    [...mask],
    other && [[...other.ids], [...other.mask]],
    label,
    source,
  ]),
});
const filesNow = () => readdirSync(shelf).sort();

const FORMS: readonly (readonly [string, Partial<DatasetRecipe>])[] = [
  ["sft", {}],
  ["dpo", { objective: { name: "dpo", beta: 0.1 } as DatasetRecipe["objective"] }],
  ["kto", { objective: { name: "kto", beta: 0.1 } as DatasetRecipe["objective"] }],
  ["held out", { evalSplit: 0.2 }],
];
test.each(FORMS)("%s: rows from the cache are the rows of the file", (_, changes) => {
  const want = plain(load(changes, null).data);
  expect(want.rows.length).toBeGreaterThan(100);
  const first = load(changes);
  expect([plain(first.data), first.read]).toEqual([want, ROWS]);
  const again = load(changes);
  expect([plain(again.data), again.read]).toEqual([want, 0]);
  expect(filesNow()).toHaveLength(1);
});

test("the same bytes under another name are the same tokens, with places in the other file", () => {
  load();
  const other = join(folder, "copied.jsonl");
  copyFileSync(path, other);
  const { data, read } = load({}, cache, other);
  expect(read).toBe(0);
  expect(plain(data)).toEqual(plain(load({}, null, other).data));
  expect(data.notices.length).toBeGreaterThan(0);
  expect(data.notices.every(({ example }) => example.startsWith(other))).toBe(true);
});

test("whatever decides the tokens makes others", () => {
  load();
  const changed: Partial<DatasetRecipe>[] = [
    { maxLength: 99 },
    { trainOn: "all" },
    { chatTemplate: false },
    { system: "Be brief." },
    { overlong: "drop" },
    { columns: { completion: "chosen" } },
    { mostRows: { train: [50], eval: [] } },
    { objective: { name: "dpo", beta: 0.1 } as DatasetRecipe["objective"] },
  ];
  for (const one of changed) expect(load(one).read).toBeGreaterThan(0);
  expect(load({}, { ...cache, maker: "another program" }).read).toBe(ROWS);
  const longer = join(folder, "longer.jsonl");
  writeFileSync(longer, `${readFileSync(path, "utf8")}${JSON.stringify(PAIRS[0])}\n`);
  expect(load({}, cache, longer).read).toBe(ROWS + 1);
  expect(filesNow()).toHaveLength(changed.length + 3);
});

test("a damaged file is made again, and the part of a killed process is left alone", () => {
  const want = plain(load().data);
  const kept = join(shelf, filesNow()[0]!);
  const whole = readFileSync(kept);
  writeFileSync(`${kept}.1-abcdef.tmp`, whole.subarray(0, 100));
  for (const at of [0, 999, whole.length >> 1, whole.length - 40, whole.length - 12, whole.length - 1]) {
    const bytes = Buffer.from(whole);
    bytes[at]! ^= 0x20;
    writeFileSync(kept, bytes);
    const { data, read } = load();
    expect([at, read]).toEqual([at, ROWS]);
    expect(plain(data)).toEqual(want);
  }
  for (const length of [0, 7, whole.length - 8]) {
    writeFileSync(kept, whole.subarray(0, length));
    expect(plain(load().data)).toEqual(want);
  }
});

test("a bad row is no less refused, and nothing is kept of its file", () => {
  const bad = join(folder, "bad.jsonl");
  writeFileSync(bad, `${readFileSync(path, "utf8")}{"prompt": "p"}\n`);
  for (const _ of [1, 2]) expect(() => load({}, cache, bad)).toThrow(`bad.jsonl:${ROWS + 1}: lacks the field 'completion'`);
  expect(filesNow()).toEqual([]);
});

test("rows from the cache go to another thread as the name of their file", () => {
  const { data } = load();
  const sent = sendable(pack(data.train));
  expect(sum(buffersOf([sent]).map(({ byteLength }) => byteLength))).toBe(0);
  const received = structuredClone(sent, { transfer: buffersOf([sent]) });
  const rows = unpack(opened(received, mapTokens));
  expect(rows.map(({ ids }) => [...ids])).toEqual(data.train.map(({ ids }) => [...ids]));
});

test("memory holds one piece of the tokens", () => {
  let spilled = 0;
  const packer = new RowPacker("rows", ({ ids }) => {
    spilled += ids.length;
  });
  const row = { ids: new Int32Array(500).fill(7), mask: new Uint8Array(500).fill(1) };
  let most = 0;
  for (let line = 1; line <= 12_000; line++) {
    packer.push({ ...row, source: { file: "rows", line } });
    most = Math.max(most, packer.bytes - 17 * packer.length);
  }
  packer.finish();
  expect(spilled).toBe(6_000_000);
  expect(most).toBeLessThan(6 << 20);
});

test("two processes at once leave one whole file", async () => {
  const program = `
    const { loadDataset } = await import(${JSON.stringify(join(import.meta.dir, "../../src/data/dataset.ts"))});
    const { PLAIN_RECIPE } = await import(${JSON.stringify(join(import.meta.dir, "../helpers/dataset.ts"))});
    const { goldenTokenizer } = await import(${JSON.stringify(join(import.meta.dir, "../helpers/golden-tokenizers.ts"))});
    const recipe = { ...PLAIN_RECIPE, train: ["name"], format: "prompt-completion", maxLength: 100 };
    const files = new Map([["name", [{ name: ${JSON.stringify(path)}, path: ${JSON.stringify(path)}, hash: ${JSON.stringify(hashOf(path))} }]]]);
    const { train } = loadDataset(recipe, goldenTokenizer("smollm"), 1600, new Map(), undefined, files, ${JSON.stringify(cache)});
    console.log(Bun.hash(Buffer.concat(train.map(({ ids }) => Buffer.from(ids.slice().buffer)))).toString());`;
  const run = async () => await new Response(Bun.spawn([process.execPath, "-e", program], { stdout: "pipe" }).stdout).text();
  const said = await Promise.all([run(), run(), run()]);
  const want = Bun.hash(Buffer.concat(load({}, null).data.train.map(({ ids }) => Buffer.from(ids.slice().buffer)))).toString();
  expect(said.map((text) => text.trim())).toEqual([want, want, want]);
  expect(filesNow()).toHaveLength(1);
  expect(load().read).toBe(0);
});

test("what was used longest ago goes first, and nothing that is in use", () => {
  const names = ["b", "a", "c"];
  for (const name of names) writeFileSync(join(shelf, name), Buffer.alloc(1000));
  trim(shelf, 2500, 60_000);
  expect(filesNow()).toEqual(["a", "b", "c"]);
  for (const [i, name] of names.entries()) utimesSync(join(shelf, name), 1000 + i, 1000 + i);
  trim(shelf, 2500, 60_000);
  expect(filesNow()).toEqual(["a", "c"]);
  for (const name of ["old.tmp", "new.tmp"]) writeFileSync(join(shelf, name), "");
  utimesSync(join(shelf, "old.tmp"), 1000, 1000);
  trim(shelf, 2500, 60_000);
  expect(filesNow()).toEqual(["a", "c", "new.tmp"]);
});

test("the digest of kept rows is that of the rows, kept with them, and made again where it is damaged", async () => {
  const digests = new Set<string>();
  for (const changes of [{}, { evalSplit: 0.25 }, { evalSplit: 0.5 }, { maxLength: 80 }]) {
    const plainly = load(changes, null).data;
    const expected = digestOf([plainly.train, plainly.eval]);
    digests.add(expected);
    for (let again = 0; again < 2; again++) {
      const { train, eval: held } = load(changes).data;
      expect(keptDigestOf([train, held])).toBe(expected);
    }
  }
  expect(digests.size).toBe(4);
  const kept = readdirSync(shelf).filter((name) => name.endsWith(".rows"));
  expect(kept).toHaveLength(4);
  for (const name of kept)
    writeFileSync(
      join(shelf, name),
      readFileSync(join(shelf, name), "utf8").replace(/^./, (a) => (a === "0" ? "1" : "0")),
    );
  const program = `
    const { mapTokens } = await import("${join(import.meta.dir, "..", "..", "src", "data", "token-file.ts")}");
    const { unpack } = await import("${join(import.meta.dir, "..", "..", "src", "data", "rows.ts")}");
    const { keptDigestOf } = await import("${join(import.meta.dir, "..", "..", "src", "sources", "tokens.ts")}");
    for (const path of process.argv.slice(-2)) console.log(keptDigestOf([unpack({ files: [mapTokens(path, "f")], chosen: null }), []]));
  `;
  const files = readdirSync(shelf).filter((name) => !name.endsWith(".rows"));
  expect(files).toHaveLength(2);
  const child = Bun.spawn([process.execPath, "-e", program, ...files.map((name) => join(shelf, name))], { stdout: "pipe" });
  const found = (await child.stdout.text()).trim().split("\n");
  expect(found).toHaveLength(2);
  for (const digest of found) expect(digests).toContain(digest);
});
