// The memory model: found again from its own numbers, close under noise, and true to the plan.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { fitMemory, type MemorySample, memoryModel, predict } from "../../src/plan/memory-model.ts";
import { makePlan, type StageDevice } from "../../src/plan/plan.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { tinySpec } from "../helpers/tiny.ts";

const GRID = [1, 2, 5, 8].flatMap((sequences) => [64, 512, 2048, 8192].map((length) => ({ sequences, length })));
const samplesOf = (b0: number, b1: number, b2: number, noise: () => number = () => 1): MemorySample[] =>
  GRID.map(({ sequences, length }) => ({ sequences, length, bytes: noise() * predict({ b0, b1, b2 }, sequences, length) }));

describe("the memory model", () => {
  test.each([
    ["of a 7B on a GPU", 14e9, 1.4e6, 0],
    ["with attention that keeps all products", 14e9, 1.4e6, 4096],
    ["of a tiny model", 1e6, 900, 0.5],
  ])("is found from exact samples %s", (_, b0, b1, b2) => {
    const found = fitMemory(samplesOf(b0, b1, b2));
    expect(found.b0 / b0).toBeCloseTo(1, 6);
    expect(found.b1 / b1).toBeCloseTo(1, 6);
    expect(Math.abs(found.b2 - b2)).toBeLessThan(1e-6 * b1);
    expect(found.meanError).toBeLessThan(1e-9);
  });

  test("is within the noise of samples that have some", () => {
    const rng = new Rng(5);
    const found = fitMemory(samplesOf(14e9, 1.4e6, 700, () => 1 + 0.01 * (2 * rng.uniform() - 1)));
    expect(found.meanError).toBeLessThan(0.01);
    for (const { sequences, length } of GRID) {
      const truth = predict({ b0: 14e9, b1: 1.4e6, b2: 700 }, sequences, length);
      expect(Math.abs(predict(found, sequences, length) / truth - 1)).toBeLessThan(0.015);
    }
  });

  test.each([2, 64, 128, 129, 100_000])("is made of numbers for a model of %i positions", (maxPositions) => {
    const cpu: StageDevice = {
      ...{ kind: "cpu", name: "made up", compute: "f32", rowTile: 24, threads: 2, ordinal: 0, count: 1, note: null, host: "" },
      ...{ totalBytes: 2 ** 50, freeBytes: 2 ** 50 },
    };
    const text =
      '[model]\npath = "m"\n[run]\noutput = "o"\ndevice = "cpu"\n[[adapter]]\nname = "a"\ndata = "x.jsonl"\nsteps = 1\n';
    const row = { length: 2, longest: 2, targets: 1 };
    const plan = makePlan(parseRecipe(text, "/here/r.toml"), tinySpec({ maxPositions }), [{ train: [row], eval: [] }], [cpu]);
    const { b0, b1, b2, meanError } = memoryModel(plan);
    expect(b0).toBeGreaterThan(0);
    expect(b1).toBeGreaterThan(0);
    expect(Number.isFinite(b2)).toBe(true);
    expect(meanError).toBeLessThan(0.1);
  });
});
