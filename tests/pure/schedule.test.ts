// Steps, order, packing and rates: pure functions, tested by tables and by properties over sizes that were not chosen.

import { describe, expect, test } from "bun:test";
import { dropoutBits, dropoutRowKey, Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { clipCoefficient, gradNormOf } from "../../src/schedule/clip.ts";
import { inputLength, pack, type Tokens } from "../../src/schedule/pack.ts";
import { learns, rateFactor, warmupSteps } from "../../src/schedule/rate.ts";
import { cut, stepsOf, stepsPerEpoch, totalSteps, totalTokens, type Work } from "../../src/schedule/steps.ts";
import { rateNotices } from "../../src/session/preparation/rate-notices.ts";
import { randomTokens } from "../helpers/tiny.ts";

function randomWork(rng: Rng): Work {
  const bounded = rng.below(2) === 0;
  return {
    lengths: range(1 + rng.below(23)).map(() => 1 + rng.below(40)),
    batchSize: 1 + rng.below(6),
    accumulation: 1 + rng.below(4),
    epochs: bounded ? null : 1 + rng.below(3),
    steps: bounded ? 1 + rng.below(20) : null,
    shuffle: rng.below(2) === 0,
    seed: rng.bits(),
  };
}

describe("the steps of an adapter", () => {
  test("use every row once an epoch, in batches of the size asked", () => {
    const rng = new Rng(1);
    for (let i = 0; i < 200; i++) {
      const work = randomWork(rng);
      const tokensPerMicrobatch = 30 + rng.below(100);
      const steps = [...stepsOf(work, tokensPerMicrobatch)];
      expect(steps.length).toBe(totalSteps(work));
      for (const epoch of new Set(steps.map((step) => step.epoch))) {
        const rows = steps.filter((step) => step.epoch === epoch).flatMap(({ microBatches }) => microBatches.flat());
        expect(new Set(rows).size).toBe(rows.length);
        const whole = steps.filter((step) => step.epoch === epoch).length === stepsPerEpoch(work);
        if (whole) expect(rows.toSorted((a, b) => a - b)).toEqual(range(work.lengths.length));
      }
      for (const { microBatches } of steps) {
        expect(sum(microBatches.map((rows) => rows.length))).toBeLessThanOrEqual(work.batchSize * work.accumulation);
        for (const rows of microBatches) {
          expect(rows.length).toBeLessThanOrEqual(work.batchSize);
          const tokens = sum(rows.map((row) => work.lengths[row]!));
          expect(tokens <= tokensPerMicrobatch || rows.length === 1).toBe(true);
        }
      }
      const tokens = sum(steps.flatMap(({ microBatches }) => microBatches.flat().map((row) => work.lengths[row]!)));
      expect(totalTokens(work)).toBe(tokens);
    }
  });

  test("fewer rows than a batch make one step an epoch", () => {
    const work = { lengths: [5, 6], batchSize: 8, accumulation: 4, epochs: 3, steps: null, shuffle: false, seed: 0 };
    expect([...stepsOf(work, 1000)].map(({ microBatches }) => microBatches)).toEqual([[[0, 1]], [[0, 1]], [[0, 1]]]);
  });

  test("part of an epoch is rounded up to whole steps", () => {
    const work = {
      lengths: Array(10).fill(3),
      batchSize: 2,
      accumulation: 1,
      epochs: 0.5,
      steps: null,
      shuffle: false,
      seed: 0,
    };
    expect(totalSteps(work)).toBe(3);
  });

  test("rows are cut into as few micro-batches as can be, alike in tokens; one longer than the budget stands alone", () => {
    expect(cut([0, 1, 2, 3], [10, 10, 50, 1], 3, 20)).toEqual([[0, 3], [1], [2]]);
    expect(cut([5, 4, 3, 2, 1, 0], [9, 1, 8, 2, 7, 3], 3, 100)).toEqual([
      [5, 3, 0],
      [4, 2, 1],
    ]);
    expect(cut([], [], 3, 20)).toEqual([]);
  });

  test("are cut the same however many they are: each row, the longest first, goes to the emptiest micro-batch, the first of them", () => {
    const plainly = (rows: readonly number[], lengths: readonly number[], batchSize: number): number[][] => {
      const batches = range(Math.ceil(rows.length / batchSize)).map(() => [] as number[]);
      const tokens = (batch: readonly number[]) => sum(batch.map((row) => lengths[row]!));
      for (const row of rows.toSorted((a, b) => lengths[b]! - lengths[a]! || rows.indexOf(a) - rows.indexOf(b))) {
        const open = batches.filter((batch) => batch.length < batchSize);
        open.reduce((a, b) => (tokens(b) < tokens(a) ? b : a)).push(row);
      }
      const places = batches.map((batch) => batch.map((row) => rows.indexOf(row)).sort((a, b) => a - b));
      return places.sort(([a], [b]) => a! - b!).map((of) => of.map((place) => rows[place]!));
    };
    const rng = new Rng(31);
    for (let i = 0; i < 200; i++) {
      const lengths = range(1 + rng.below(60)).map(() => 1 + rng.below(1 + rng.below(30)));
      const rows = rng.shuffle(range(lengths.length));
      const batchSize = 1 + rng.below(7);
      expect(cut(rows, lengths, batchSize, 1e6)).toEqual(plainly(rows, lengths, batchSize));
    }
    const many = range(100_000).map((i) => 1 + (i % 97)); // held-out rows are cut all at once
    const begun = performance.now();
    expect(cut(range(many.length), many, 2, 1e9).length).toBe(50_000);
    expect(performance.now() - begun).toBeLessThan(5_000);
  });
});

describe("packing", () => {
  const segment = (adapter: number, samples: readonly Tokens[]) => ({
    adapter,
    samples,
    seed: 7,
    step: 2,
    dropout: 0.25,
    firstRow: 11,
    weight: 0.5,
  });

  test("tables describe every token, and rows of an adapter fill whole tiles", () => {
    const rng = new Rng(3);
    for (let i = 0; i < 50; i++) {
      const segments = range(1 + rng.below(5)).map((adapter) =>
        segment(
          adapter,
          range(1 + rng.below(4)).map(() => randomTokens(rng, 99, 2 + rng.below(20))),
        ),
      );
      const batch = pack(segments, 6, 8);
      expect(batch.ids.length % 8).toBe(0);
      expect(batch.tokens).toBe(sum(segments.flatMap(({ samples }) => samples.map(inputLength))));
      let row = 0;
      let target = 0;
      for (const { adapter, samples } of segments) {
        const first = row;
        for (const sample of samples) {
          const start = row;
          for (let t = 0; t + 1 < sample.ids.length; t++, row++) {
            expect(batch.tileAdapter[Math.floor(row / 8)]).toBe(adapter);
            expect([batch.ids[row], batch.positions[row]]).toEqual([sample.ids[t], t]);
            expect([...batch.bounds.subarray(2 * row, 2 * row + 2)]).toEqual([start, start + inputLength(sample)]);
            expect(batch.rowNumber[row]).toBe(11 + row - first);
            if (sample.mask[t + 1]) {
              expect([batch.targetRows[target], batch.targetIds[target]]).toEqual([row, sample.ids[t + 1]]);
              target++;
            }
          }
        }
        for (; target % 8 !== 0; target++) expect([batch.targetRows[target], batch.weights[target]]).toEqual([-1, 0]);
        for (; row % 8 !== 0; row++) expect(batch.bounds[2 * row]).toBe(batch.bounds[2 * row + 1]!);
      }
      expect(target).toBe(batch.targetRows.length);
      expect(row).toBe(batch.ids.length);
    }
  });

  test("the dropout table keeps a share 1 - p of the elements, and all without dropout", () => {
    const batch = pack([segment(1, [randomTokens(new Rng(1), 9, 5)])], 3, 8);
    const [seed, step, threshold, bits] = batch.dropout.subarray(4, 8);
    expect([seed, step]).toEqual([7, 2]);
    const scale = new Float32Array(Int32Array.from([bits!]).buffer)[0]!;
    expect(scale).toBeCloseTo(4 / 3, 6);
    let kept = 0;
    for (let row = 0; row < 100; row++) {
      const key = dropoutRowKey(seed!, step!, 5, row);
      for (let k = 0; k < 1000; k++) if (dropoutBits(key, k) >= threshold! >>> 0) kept++;
    }
    expect(Math.abs(kept / 100_000 - 0.75)).toBeLessThan(0.006); // four standard deviations
    expect([...batch.dropout.subarray(0, 3)]).toEqual([0, 0, 0]);
  });
});

describe("learning rates", () => {
  const of = (name: "constant" | "linear" | "cosine", warmup: number, minRatio = 0) =>
    range(6).map((step) => rateFactor({ name, warmup, minRatio }, step, 6));
  test("are Hugging Face's", () => {
    expect(of("constant", 2)).toEqual([0, 0.5, 1, 1, 1, 1]);
    expect(of("linear", 2)).toEqual([0, 0.5, 1, 0.75, 0.5, 0.25]);
    expect(of("cosine", 0).map((rate) => rate.toFixed(6))).toEqual([
      "1.000000",
      "0.933013",
      "0.750000",
      "0.500000",
      "0.250000",
      "0.066987",
    ]);
    expect(of("linear", 0.3)).toEqual([0, 0.5, 1, 0.75, 0.5, 0.25]);
    expect(of("linear", 0, 0.5)[3]).toBe(0.75);
  });

  test("rise as slowly as a warm-up says that is longer than the run", () => {
    // transformers 5.24: get_scheduler("linear" and "cosine", num_warmup_steps=24, num_training_steps=6)
    for (const name of ["constant", "linear", "cosine"] as const)
      expect(of(name, 24)).toEqual([0, 1 / 24, 2 / 24, 3 / 24, 4 / 24, 5 / 24]);
  });

  test("that do not come to their peak are reported", () => {
    const adapter = (name: string, steps: number, warmup: number) => ({
      ...{ name, steps },
      recipe: { schedule: { name: "linear", warmup, minRatio: 0 }, optimizer: { learningRate: 2e-4 } } as AdapterRecipe,
    });
    const quiet = [adapter("a", 30, 29), adapter("b", 30, 0.5), adapter("c", 1, 0), adapter("d", 30, 0)];
    expect(rateNotices(quiet)).toEqual([]);
    expect(rateNotices([adapter("a", 30, 1000), ...quiet, adapter("e", 30, 1000), adapter("f", 4, 4)])).toEqual([
      "a and 1 more: the learning rate rises in all 30 steps (warmup = 1,000), to 0.0000058 of 0.0002; " +
        "lower warmup, which below 1 is a share of the steps",
      "f: the learning rate rises in all 4 steps (warmup = 4), to 0.00015 of 0.0002; " +
        "lower warmup, which below 1 is a share of the steps",
    ]);
  });

  test("that do not fall are reported where they have a least, which nothing comes to", () => {
    const of = (name: string, scheduler: string, minRatio: number) => ({
      ...{ name, steps: 30 },
      recipe: { schedule: { name: scheduler, warmup: 0, minRatio }, optimizer: { learningRate: 2e-4 } } as AdapterRecipe,
    });
    const quiet = [of("a", "constant", 0), of("b", "constant", 1), of("c", "linear", 0.1), of("d", "cosine", 0.1)];
    expect(rateNotices([...quiet, of("e", "constant", 0.1)])).toEqual([
      'e: min_lr_ratio = 0.1 does nothing with the scheduler "constant", whose rate does not fall',
    ]);
    const both = of("f", "constant", 0.1);
    expect(rateNotices([{ ...both, recipe: { ...both.recipe, schedule: { ...both.recipe.schedule, warmup: 30 } } }])).toEqual([
      expect.stringContaining("f: min_lr_ratio = 0.1 does nothing"),
      expect.stringContaining("f: the learning rate rises in all 30 steps"),
    ]);
  });

  test("a share of less than one step warms nothing up, so that a run of one step learns", () => {
    const steps = (warmup: number, all: number) => warmupSteps({ name: "cosine", warmup, minRatio: 0 }, all);
    expect([1, 2, 33, 34, 67].map((all) => steps(0.03, all))).toEqual([0, 0, 0, 2, 3]);
    expect(of("cosine", 0.03)[0]).toBe(1);
    for (const name of ["constant", "linear", "cosine"] as const)
      for (const warmup of [0, 0.03, 0.999]) expect(learns({ name, warmup, minRatio: 0 }, 1e-4, 1)).toBe(true);
  });

  test("a run in which no step has a rate is known", () => {
    expect(learns({ name: "cosine", warmup: 1, minRatio: 0 }, 1e-4, 1)).toBe(false);
    expect(learns({ name: "cosine", warmup: 5, minRatio: 0 }, 1e-4, 1)).toBe(false);
    expect(learns({ name: "constant", warmup: 5, minRatio: 0 }, 1e-4, 2)).toBe(true);
    expect(learns({ name: "constant", warmup: 0, minRatio: 0 }, 1e-60, 3)).toBe(false); // 0 in fp32
  });
});

describe("clipping", () => {
  test("scales by the norm over all stages, and not below it", () => {
    const parts = [Float32Array.from([4, 5]), Float32Array.from([7])];
    expect(gradNormOf(parts)).toBe(4);
    expect(clipCoefficient(4, 1)).toBeCloseTo(0.25, 6);
    expect(clipCoefficient(4, 8)).toBe(1);
    expect(clipCoefficient(4, null)).toBe(1);
  });
});
