// Rows of several sources by weights: what an epoch has, in which order, and that any step can be made again.

import { describe, expect, test } from "bun:test";
import { range, sum } from "../../src/base/shape.ts";
import { planAdapters } from "../../src/plan/adapters.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { adapterTable } from "../../src/recipe/resolve.ts";
import { mixedCounts, mixedOrder, type SourceMix } from "../../src/schedule/mix.ts";
import {
  epochOrder,
  epochTokens,
  stepsOf,
  stepsPerEpoch,
  totalSteps,
  totalTokens,
  usedRows,
  type Work,
} from "../../src/schedule/steps.ts";
import { mixNotices } from "../../src/session/preparation/mix-notices.ts";
import { tinySpec } from "../helpers/tiny.ts";

const mixOf = (changes: Partial<SourceMix> = {}): SourceMix => ({
  weights: [3, 1],
  stop: "first_exhausted",
  by: "rows",
  sizes: [60, 100],
  ...changes,
});
const lengths = (sizes: readonly number[]): number[] =>
  sizes.flatMap((size, source) => range(size).map((i) => 5 + 4 * source + (i % 3)));
const workOf = (sources: SourceMix, changes: Partial<Work> = {}): Work => ({
  ...{
    lengths: lengths(sources.sizes),
    sources,
    batchSize: 4,
    accumulation: 1,
    epochs: 3,
    steps: null,
    shuffle: true,
    seed: 7,
  },
  ...changes,
});
const sourceOf = (row: number, { sizes }: SourceMix): number => sizes.findIndex((_, i) => row < sum(sizes.slice(0, i + 1)));
const countsIn = (rows: readonly number[], mix: SourceMix): number[] =>
  mix.sizes.map((_, i) => rows.filter((row) => sourceOf(row, mix) === i).length);
const timesOf = (rows: readonly number[]): Map<number, number> => {
  const times = new Map<number, number>();
  for (const row of rows) times.set(row, (times.get(row) ?? 0) + 1);
  return times;
};

describe("an epoch", () => {
  test("ends with the first source that is exhausted, or the last", () => {
    const first = mixOf();
    expect(mixedCounts(first, lengths(first.sizes))).toEqual([60, 20]);
    const all = mixOf({ stop: "all_exhausted" });
    expect(mixedCounts(all, lengths(all.sizes))).toEqual([300, 100]);
    expect(mixedCounts(mixOf({ weights: [1000, 1], sizes: [5, 5] }), lengths([5, 5]))).toEqual([5, 1]);
  });

  test("has shares of tokens where these are asked for", () => {
    const mix = mixOf({ weights: [1, 1], by: "tokens", sizes: [90, 90] });
    const own = lengths(mix.sizes);
    const [a, b] = mixedCounts(mix, own);
    const mean = (from: number) => sum(own.slice(from, from + 90)) / 90;
    expect(Math.abs((a! * mean(0)) / (b! * mean(90)) - 1)).toBeLessThan(0.02);
  });

  test.each([true, false])("has these counts of rows of each source, spread over it (shuffle: %p)", (shuffle) => {
    for (const stop of ["first_exhausted", "all_exhausted"] as const) {
      const mix = mixOf({ stop, weights: [3, 1, 2], sizes: [31, 40, 17] });
      const work = workOf(mix, { shuffle });
      for (const epoch of [0, 1, 5]) {
        const order = [...epochOrder(work, epoch)];
        expect(countsIn(order, mix)).toEqual(mixedCounts(mix, work.lengths));
        const half = countsIn(order.slice(0, order.length / 2), mix);
        for (const [i, count] of countsIn(order, mix).entries())
          expect(Math.abs(half[i]! - count / 2)).toBeLessThan(shuffle ? 12 : 1.5);
      }
      expect(epochOrder(work, 0)).toEqual(epochOrder(work, 0));
      if (shuffle) expect(epochOrder(work, 0)).not.toEqual(epochOrder({ ...work, seed: 8 }, 0));
    }
  });
});

test("over epochs each row of a source is used as often as its others, but for one", () => {
  for (const shuffle of [true, false])
    for (const stop of ["first_exhausted", "all_exhausted"] as const) {
      const mix = mixOf({ stop, weights: [2, 3], sizes: [13, 47] });
      const work = workOf(mix, { shuffle });
      const rows = range(6).flatMap((epoch) => [...epochOrder(work, epoch)]);
      const times = timesOf(rows);
      for (const source of [0, 1]) {
        const own = [...times].filter(([row]) => sourceOf(row, mix) === source).map(([, count]) => count);
        expect(own).toHaveLength(mix.sizes[source]!);
        expect(Math.max(...own) - Math.min(...own)).toBeLessThanOrEqual(1);
      }
    }
});

test("steps from any step on are the same, and the plan counts their tokens", () => {
  const work = workOf(mixOf({ weights: [2, 3], sizes: [13, 47] }));
  const all = [...stepsOf(work, 64)];
  expect(all).toHaveLength(totalSteps(work));
  expect(all).toHaveLength(3 * stepsPerEpoch(work));
  for (const from of [1, 7, stepsPerEpoch(work), stepsPerEpoch(work) + 3, all.length - 1])
    expect([...stepsOf(work, 64, from)]).toEqual(all.slice(from));
  const rows = all.flatMap((step) => step.rows);
  expect(totalTokens(work)).toBe(sum(rows.map((row) => work.lengths[row]!)));
  expect(usedRows(work)).toEqual([...new Set(rows)].sort((a, b) => a - b));
  expect(Math.abs(epochTokens(work) * 3 - totalTokens(work)) / totalTokens(work)).toBeLessThan(0.05);
});

test("a recipe's weights come back from its resolved form", () => {
  const head = '[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\n';
  const data =
    'data = { train = [{ path = "a.jsonl", weight = 3, rows = 50 }, { dataset = "o/n", weight = 1 }], stop = "all_exhausted", shares = "tokens" }';
  const [adapter] = parseRecipe(head + data, "/here/r.toml").adapters;
  expect(adapter!.mix).toEqual({ weights: [3, 1], stop: "all_exhausted", by: "tokens" });
  expect(adapter!.mostRows).toEqual({ train: [50, null], eval: [] });
  expect(adapterTable(adapter!)["data"]).toEqual({
    train: [
      { path: "/here/a.jsonl", rows: 50, weight: 3 },
      { path: "hf://datasets/o/n", weight: 1 },
    ],
    stop: "all_exhausted",
    shares: "tokens",
  });
  const plain = parseRecipe(`${head}data = ["a.jsonl", { path = "b.jsonl" }]`, "/here/r.toml").adapters[0]!;
  expect([plain.mix, plain.mostRows, plain.train]).toEqual([null, null, ["/here/a.jsonl", "/here/b.jsonl"]]);
  for (const wrong of [
    '{ train = "a.jsonl", stop = "all_exhausted" }',
    '{ train = "a.jsonl", eval = [{ path = "b.jsonl", weight = 1 }] }',
  ])
    expect(() => parseRecipe(`${head}data = ${wrong}`, "/here/r.toml")).toThrow(/weight/);
});

test("what an epoch has of each source is said without what may be secret in an address", () => {
  const row = { ids: Int32Array.of(1, 2), mask: Uint8Array.of(0, 1) };
  const train = ["https://host.example/a.jsonl?key=private", "hf://datasets/org/rows"];
  const mix = { weights: [1, 1], stop: "first_exhausted", by: "rows" } as const;
  const said = mixNotices([{ name: "a", train, mix } as never], [{ train: [row, row, row], sizes: [1, 2] }]);
  expect(said).toEqual([
    "a: an epoch has 1 of the 1 row of https://host.example/a.jsonl?..., 1 of the 2 rows of hf://datasets/org/rows",
  ]);
});

test("weights that make an epoch of too many rows are refused, before any of its orders is made", () => {
  const head = 'model = "m"\nrun = { output = "o" }\n[[adapter]]\nname = "a"\n';
  const row = { length: 5, longest: 5, targets: 2 };
  const planned = (weights: readonly [number, number], stop: string, length = "epochs = 1") => {
    const [one, other] = weights.map((weight, i) => `{ path = "${i}.jsonl", weight = ${weight} }`);
    const { adapters } = parseRecipe(
      `${head}data = { train = [${one}, ${other}], stop = "${stop}" }\n${length}`,
      "/here/r.toml",
    );
    return planAdapters(adapters, tinySpec(), [{ train: range(5).map(() => row), eval: [], sizes: [2, 3] }], 64)[0]!;
  };
  for (const [weights, of] of [
    [[1e9, 1], "3,000,000,000 rows of the 2 of /here/0.jsonl"],
    [[1, 1e30], "rows of the 3 of /here/1.jsonl"],
  ] as const)
    expect(() => planned(weights, "all_exhausted")).toThrow(of);
  expect(planned([1e30, 1], "first_exhausted").steps).toBe(1);
  expect(planned([30, 1], "all_exhausted").steps).toBe(24); // 90 and 3 rows
  // all steps that a recipe may have are counted at once
  expect(planned([3, 2], "all_exhausted", "steps = 1_000_000_000").tokens).toBe(20_000_000_000);
});

test("sources of a million rows are mixed", () => {
  const sizes = [1_000_000, 300_000];
  const mix = { weights: [3, 1], stop: "all_exhausted", by: "rows", sizes } as const;
  const order = mixedOrder(mix, new Int32Array(1_300_000).fill(5), 1, 0, true);
  const of = [0, 0];
  for (const row of order) of[row < sizes[0]! ? 0 : 1]!++;
  expect(of).toEqual(mixedCounts(mix, new Int32Array(1_300_000).fill(5)));
  expect(new Set(order).size).toBe(1_300_000);
});
