// What a base takes by precision, for the shapes that people train: the numbers that the project has promised, and on which
// CPUs it is multiplied in bf16.

import { describe, expect, test } from "bun:test";
import { heldWeights, type Precision, tableFormatOf } from "../../src/base/precision.ts";
import { range, sum } from "../../src/base/shape.ts";
import { makePlan, type StageDevice, totalBytes, totalMemory } from "../../src/plan/plan.ts";
import { exactOf, shapeOf } from "../../src/plan/shapes.ts";
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

describe("on CPUs", () => {
  const cpu = (more: Partial<StageDevice> = {}): StageDevice => ({
    ...{ ...H100, kind: "cpu", name: "a processor", compute: "f32", rowTile: 24, threads: 2, host: "" },
    ...more,
  });
  const able = { multipliesBf16: true, packsTables: true };

  /** The plan of adapters of 4 x 64 tokens on all linears of SmolLM2-135M. */
  function onCpus(devices: readonly StageDevice[], work: { readonly precision?: Precision; readonly adapters?: number } = {}) {
    const [shape, spec] = ["smollm2-135m", shapeOf("smollm2-135m")];
    const { adapters = 1 } = work;
    const recipe = recipeOf({ ...work, stages: devices.length }, { shape, spec }, 10);
    const row = { length: 64, longest: 64, targets: 64 };
    const data = range(adapters).map(() => ({ train: range(4).map(() => row), eval: [], reference: null }));
    return makePlan(recipe, spec, data, devices, { exact: exactOf(shape) });
  }

  test("bf16 needs AVX512-BF16 on every stage, and names the one that lacks it", () => {
    expect(onCpus([cpu(able)], { precision: "bf16" }).stages[0]!.sizes.format).toBe("bf16-products");
    const other = cpu({ name: "an older processor", host: "far" });
    expect(() => onCpus([cpu(able), other], { precision: "bf16" })).toThrow(
      "model.precision is bf16, which a CPU multiplies in by AVX512-BF16, and that of stage 1 lacks it: an older processor on far",
    );
    expect(onCpus([cpu(able), other]).stages[1]!.sizes.format).toBe("bf16");
  });

  test("bf16 that is preferred is taken where all stages have it and gain by it, and is auto everywhere else", () => {
    const preferring = cpu({ ...able, prefersBf16: true });
    const formats = (precision: Precision, ...devices: StageDevice[]) =>
      onCpus(devices, { precision }).stages.map(({ sizes }) => sizes.format);
    expect(formats("prefer-bf16", preferring, preferring)).toEqual(["bf16-products", "bf16-products"]);
    for (const other of [cpu(), cpu(able)]) {
      expect(formats("prefer-bf16", preferring, other)).toEqual(formats("auto", preferring, other));
      expect(onCpus([other], { precision: "prefer-bf16" }).stages).toEqual(onCpus([other]).stages);
    }
    expect(formats("prefer-bf16", H100)).toEqual(formats("auto", H100));
  });

  test("a base in bf16 is held so, embedding and head where all CPUs take them apart as they go", () => {
    const { hidden, vocab } = shapeOf("smollm2-135m");
    const weights = (devices: readonly StageDevice[]) => totalMemory(onCpus(devices)).weights;
    const tables = weights([cpu()]) - weights([cpu(able)]);
    expect(tables / (2 * hidden * vocab)).toBeCloseTo(1, 3);
    expect(onCpus([cpu(able), cpu()]).stages[0]!.sizes.tableFormat).toBeUndefined();
    const exact = { format: "bf16", others: [], tables: true } as const;
    const f32 = { compute: "f32", packsTables: true } as const;
    expect(tableFormatOf(heldWeights("auto", f32, exact))).toBe("bf16");
    for (const precision of ["fp32", "int8", "nf4"] as const)
      expect(tableFormatOf(heldWeights(precision, f32, exact))).toBe("dense");
    expect(tableFormatOf(heldWeights("bf16", { compute: "f32" }, null))).toBe("bf16-products");
    expect(tableFormatOf(heldWeights("auto", { compute: "bf16" }, exact))).toBe("dense");
  });

  test("adapters that fill a pass each take turns with one buffer of gradients, and chunks of logits are as small as they may be", () => {
    const { sizes } = onCpus([cpu(able)], { adapters: 4 }).stages[0]!;
    expect([sizes.rows, sizes.chunk, sizes.gradients.length]).toEqual([264, 96, 1]); // 264 rows in 3 chunks
  });
});
