// `mlora data`: rows as they will be trained.

import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { loadDataset } from "../../src/data/dataset.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { Workplace } from "../helpers/program.ts";

const work = new Workplace();
afterAll(() => work[Symbol.dispose]());

const json = (...rows: readonly object[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
const recipe = work.project(
  `[model]
path = "../model"
[run]
output = "out"
[[adapter]]
name = "sums"
data = { train = ["a.jsonl", "b.jsonl"], eval = "b.jsonl" }
max_length = 24
[[adapter]]
name = "pairs"
objective = "dpo"
data = "pairs.jsonl"
`,
  {
    "a.jsonl": json({ prompt: "1 + 1", completion: "2" }, { prompt: "2 + 2", completion: `4${" and more".repeat(20)}` }),
    "b.jsonl": json({ prompt: "x".repeat(80), completion: "too late" }, { prompt: "3 + 3", completion: "6" }),
    "pairs.jsonl": json({ prompt: "Hi", chosen: "Hello", rejected: "Go away" }),
    "bad.jsonl": json({ prompt: "1 + 1", completion: "2" }, { prompt: "no completion" }),
  },
);

async function rowsOf(...args: readonly string[]) {
  const { code, out, err } = await work.mlora("data", recipe, ...args, "--json");
  expect(err).toBe("");
  expect(code).toBe(0);
  return JSON.parse(out);
}

describe("mlora data", () => {
  test("counts what training reads", async () => {
    const [sums] = await rowsOf("sums");
    const of = loadRecipe(recipe, {}).adapters[0]!;
    const { train, eval: held, counts } = loadDataset(of, loadTokenizer(work.model), 10_000);
    expect(counts.dropped).toBe(2); // the long prompt, once in training and once in evaluation
    expect(sums).toMatchObject({
      train_rows: train.length,
      eval_rows: held.length,
      ...{ read: counts.rows, truncated: 1, dropped: 2 },
    });
    expect(sums.tokens).toBe(train.reduce((total, { ids }) => total + ids.length, 0));
    expect(sums.learned_tokens).toBe(train.reduce((total, { mask }) => total + mask.reduce((a, b) => a + b, 0), 0));
    expect(sums.lengths.bins.reduce((total: number, { count }: { count: number }) => total + count, 0)).toBe(train.length);
  });

  test("shows each row as it is trained, cut or dropped, numbered through all files", async () => {
    const of = loadRecipe(recipe, {}).adapters[0]!;
    const { train } = loadDataset(of, loadTokenizer(work.model), 10_000);
    const [first, cut, dropped, last] = await Promise.all(
      [1, 2, 3, 4].map(async (n) => (await rowsOf("sums", "--row", `${n}`))[0].rows[0]),
    );
    for (const [row, sample] of [
      [first, train[0]!],
      [cut, train[1]!],
      [last, train[2]!],
    ] as const) {
      const [{ ids, weights, kept }] = row.sequences;
      expect(ids.slice(0, kept)).toEqual([...sample.ids]);
      expect(weights.slice(0, kept)).toEqual([...sample.mask]);
    }
    expect(cut.sequences[0].kept).toBe(24);
    expect(cut.sequences[0].text.map(({ role }: { role: string }) => role)).toEqual(["read", "learned", "cut"]);
    expect(dropped).toMatchObject({ dropped: true, notices: [{ kind: "nothing to learn", rows: 1 }] });
    expect(last.place).toBe(`${join(recipe, "..", "b.jsonl")}:2`);
  });

  test("names the sequences of preferences", async () => {
    const [{ rows }] = await rowsOf("pairs", "--row", "1");
    expect(rows[0].sequences.map(({ name }: { name: string }) => name)).toEqual(["chosen", "rejected"]);
  });

  test("marks what is learned, in brackets where there are no colours", async () => {
    const plain = await work.start(["data", recipe, "sums", "--row", "1"]).ended;
    expect(plain.out).toMatch(/⟦[^⟧]*2[^⟧]*⟧/);
    const coloured = await work.start(["data", recipe, "sums", "--row", "1"], { FORCE_COLOR: "1" }).ended;
    expect(coloured.out).toContain("\x1b[32m");
    expect(coloured.out).not.toContain("⟦");
  });

  test("what is asked for and is not there is a wrong request", async () => {
    for (const [args, said] of [
      [["data", recipe, "sum"], "did you mean 'sums'?"],
      [["data", recipe, "sums", "--row", "5"], "has no row 5"],
      [["data", recipe, "sums", "--row", "0"], "--row is 0"],
      [["data", recipe, "pairs", "--eval"], "has no files of evaluation rows"],
    ] as const) {
      const { code, err } = await work.mlora(...args);
      expect(err).toContain(said);
      expect(code).toBe(2);
    }
  });
});
