// The shapes of `mlora bench`: as many parameters as the released models have, and a plan with adapters on all their linears.

import { expect, test } from "bun:test";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import { modulesOf } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { makePlan, type StageDevice, totalBytes, totalMemory } from "../../src/plan/plan.ts";
import { exactOf, SHAPES } from "../../src/plan/shapes.ts";
import { recipeOf } from "../../src/session/benchmark/work.ts";
import { refused } from "../helpers/refused.ts";

/** Of transformers' text models of these configurations; Gemma 4 with its scalars of layers, which it counts as buffers. */
const PARAMETERS = {
  "smollm3-3b": 3_075_098_624,
  "phi4-14b": 14_659_507_200,
  "gemma3-4b": 3_880_263_168,
  "qwen3.5-4b": 4_205_751_296,
  "gemma4-e4b": 7_463_013_376 + 42,
  "gemma4-12b": 11_907_350_272 + 48,
  "lfm2-1.2b": 1_170_340_608,
  "granite4-h-micro": 3_191_396_096,
};

test.each(Object.entries(PARAMETERS))("%s has %i parameters", (shape, parameters) => {
  expect(sum([...tensorShapes(SHAPES[shape]!).values()].map(sizeOf))).toBe(parameters);
});

const gpu: StageDevice = {
  ...{ kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0, ordinal: 0, count: 1, note: null, host: "" },
  ...{ totalBytes: 2 ** 40, freeBytes: 2 ** 40 },
};

test.each(Object.entries(SHAPES).filter(([, spec]) => spec.experts === null))(
  "%s plans adapters on all linears",
  (shape, spec) => {
    const recipe = recipeOf({ rows: 2, length: 8 }, { shape, spec }, 3);
    const row = { length: 8, longest: 8, targets: 8 };
    const { adapters } = makePlan(recipe, spec, [{ train: range(2).map(() => row), eval: [] }], [gpu]);
    const { places, targets } = adapters[0]!;
    const adapted = places ? sum(places.ranks.flat().map((rank) => Number(rank > 0))) : targets.length * spec.layers;
    expect(adapted).toBe(modulesOf(spec).length);
  },
);

const passOf = (shape: string, freeBytes: number, tokens: number | null = null) => {
  const spec = SHAPES[shape]!;
  const recipe = recipeOf({ adapters: 16, rows: 1, length: 1024, targets: "qkvo", tokens }, { shape, spec }, 3);
  const row = { length: 1024, longest: 1024, targets: 1024 };
  const data = range(16).map(() => ({ train: [row], eval: [] }));
  const { stages } = makePlan(recipe, spec, data, [{ ...gpu, freeBytes }], { exact: exactOf(shape) });
  const { rows, recomputation } = stages[0]!.sizes;
  return [rows, recomputation];
};

test("passes of experts are larger where memory allows, before anything is computed again", () => {
  expect(passOf("llama3-8b", 2 ** 40)).toEqual([4096, "none"]);
  expect(passOf("qwen3-30b-a3b", 2 ** 40)).toEqual([16384, "none"]);
  expect(passOf("qwen3-30b-a3b", 100 * 2 ** 30)).toEqual([8192, "none"]);
  expect(passOf("qwen3-30b-a3b", 66 * 2 ** 30)[0]).toBe(4096);
  expect(passOf("qwen3-30b-a3b", 66 * 2 ** 30)[1]).not.toBe("none");
  expect(passOf("qwen3-30b-a3b", 2 ** 40, 2048)).toEqual([2048, "none"]);
});

/** As docs/measurements/experts.md has it: 4 x 2048 tokens of an adapter on attention. */
test.each([
  ["qwen3-30b-a3b", "nf4", 24],
  ["qwen3-30b-a3b", "nf4-fp8", 24],
  ["gpt-oss-20b", "auto", 18],
] as const)("%s with experts in 4 bits is planned in less than what is asked", (shape, precision, most) => {
  const spec = SHAPES[shape]!;
  const work = { rows: 4, length: 2048, tokens: 8192, targets: "qkvo", precision, recomputation: "full" } as const;
  const row = { length: 2048, longest: 2048, targets: 2048 };
  const data = [{ train: range(4).map(() => row), eval: [] }];
  const plan = makePlan(recipeOf(work, { shape, spec }, 3), spec, data, [gpu], { exact: exactOf(shape) });
  expect(plan.stages[0]!.sizes.expertFormat ?? plan.stages[0]!.sizes.format).toBe(shape === "gpt-oss-20b" ? "mxfp4" : "nf4");
  expect(totalBytes(totalMemory(plan)) / 2 ** 30).toBeLessThan(most);
});

test("a model without inputs of its layers' own is offered none of their linears", () => {
  const spec = SHAPES["gemma4-12b"]!;
  const recipe = recipeOf({ rows: 2, length: 8 }, { shape: "gemma4-12b", spec }, 3);
  const wrong = { ...recipe, adapters: recipe.adapters.map((of) => ({ ...of, targets: ["per_layer_projection"] })) };
  const row = { length: 8, longest: 8, targets: 8 };
  const { hint } = refused(() => makePlan(wrong, spec, [{ train: [row], eval: [] }], [gpu]));
  expect(hint).toContain("down_proj");
  expect(hint).not.toContain("per_layer");
});
