// What a base takes on a GPU by precision, for the shapes that people train: the numbers that the project has promised.

import { describe, expect, test } from "bun:test";
import type { Precision } from "../../src/base/precision.ts";
import { range, sum } from "../../src/base/shape.ts";
import { makePlan, type StageDevice, totalBytes, totalMemory } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import type { Recipe } from "../../src/recipe/recipe.ts";
import { recipeOf } from "../../src/session/benchmark-work.ts";

const GIB = 2 ** 30;
/** Its driver and kernels take a part of the 80 GB. */
const H100: StageDevice = {
  kind: "cuda",
  name: "a GPU of 80 GB",
  compute: "bf16",
  rowTile: 128,
  threads: 0,
  totalBytes: 79 * GIB,
  freeBytes: 78 * GIB,
  ordinal: 0,
  count: 1,
  note: null,
  host: "",
};

/** The plan of four adapters of rank 16 on q, k, v and o, of 8 x 512 tokens each. */
function planned(shape: string, precision: Precision, recomputation: Recipe["run"]["recomputation"]) {
  const [rows, length, adapters, spec] = [8, 512, 4, shapeOf(shape)];
  const work = { adapters, rows, length, rank: 16, targets: "qkvo", recomputation, precision } as const;
  const recipe = recipeOf(work, { shape, spec }, 10);
  const row = { length, longest: length, targets: length };
  const data = range(adapters).map(() => ({ train: range(rows).map(() => row), eval: [], reference: null }));
  const plan = makePlan(recipe, spec, data, [H100]);
  return { plan, gib: totalBytes(totalMemory(plan)) / GIB, weights: totalMemory(plan).weights };
}

describe("an nf4 base with full recomputation", () => {
  test.each([
    ["llama2-7b", 7],
    ["llama2-13b", 12],
    ["llama3-70b", 78],
  ])("%s within %d GiB, all adapters at once", (shape, most) => {
    const { plan, gib } = planned(shape, "nf4", "full");
    expect(gib).toBeLessThan(most);
    expect(gib).toBeGreaterThan(most / 3);
    expect(plan.slots).toBe(4);
  });
});

test("weights take the bytes of their format: 2, 1 and 0.516 a value, with an embedding and a head in bf16", () => {
  const { hidden, intermediate, layers, vocab } = shapeOf("llama2-7b");
  const linears = layers * sum([4 * hidden * hidden, 3 * hidden * intermediate]);
  const tables = 2 * 2 * hidden * vocab;
  for (const [precision, bytes] of [
    ["bf16", 2],
    ["int8", 1],
    ["nf4", 0.5 + 1 / 64 + 4 / 64 / 256],
    ["nf4-fp8", 0.5 + 1 / 64 + 4 / 64 / 256],
  ] as const) {
    const { weights } = planned("llama2-7b", precision, "full");
    expect((weights - tables) / linears / bytes).toBeCloseTo(1, 2);
  }
});
