// The shapes of `mlora bench`: as many parameters as the released models have, and a plan with adapters on all their linears.

import { expect, test } from "bun:test";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import { modulesOf } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { makePlan, type StageDevice } from "../../src/plan/plan.ts";
import { SHAPES } from "../../src/plan/shapes.ts";
import { recipeOf } from "../../src/session/benchmark-work.ts";
import { refused } from "../helpers/refused.ts";

/** Of transformers' text models of these configurations; Gemma 4 with its scalars of layers, which it counts as buffers. */
const PARAMETERS = {
  "smollm3-3b": 3_075_098_624,
  "phi4-14b": 14_659_507_200,
  "gemma3-4b": 3_880_263_168,
  "qwen3.5-4b": 4_205_751_296,
  "gemma4-e4b": 7_463_013_376 + 42,
  "gemma4-12b": 11_907_350_272 + 48,
};

test.each(Object.entries(PARAMETERS))("%s has %i parameters", (shape, parameters) => {
  expect(sum([...tensorShapes(SHAPES[shape]!).values()].map(sizeOf))).toBe(parameters);
});

const gpu: StageDevice = {
  ...{ kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0, ordinal: 0, count: 1, note: null, host: "" },
  ...{ totalBytes: 2 ** 40, freeBytes: 2 ** 40 },
};

/** For what plans for a GPU refuse. */
const cpu: StageDevice = { ...gpu, kind: "cpu", name: "a CPU", compute: "f32", rowTile: 24, threads: 2 };

test.each(Object.entries(SHAPES).filter(([, spec]) => spec.experts === null))(
  "%s plans adapters on all linears",
  (shape, spec) => {
    const recipe = recipeOf({ rows: 2, length: 8 }, { shape, spec }, 3);
    const row = { length: 8, longest: 8, targets: 8 };
    const { adapters } = makePlan(recipe, spec, [{ train: range(2).map(() => row), eval: [] }], [spec.delta ? cpu : gpu]);
    const { places, targets } = adapters[0]!;
    const adapted = places ? sum(places.ranks.flat().map((rank) => Number(rank > 0))) : targets.length * spec.layers;
    expect(adapted).toBe(modulesOf(spec).length);
  },
);

test("a model without inputs of its layers' own is offered none of their linears", () => {
  const spec = SHAPES["gemma4-12b"]!;
  const recipe = recipeOf({ rows: 2, length: 8 }, { shape: "gemma4-12b", spec }, 3);
  const wrong = { ...recipe, adapters: recipe.adapters.map((of) => ({ ...of, targets: ["per_layer_projection"] })) };
  const row = { length: 8, longest: 8, targets: 8 };
  const { hint } = refused(() => makePlan(wrong, spec, [{ train: [row], eval: [] }], [gpu]));
  expect(hint).toContain("down_proj");
  expect(hint).not.toContain("per_layer");
});
