// Which layers each stage holds, compared with all ways of dividing them, on models small enough to try them all.

import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { WEIGHT_FORMATS, type WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { counted } from "../../src/base/units.ts";
import { costsOf, headWork, layerWork, mostStages, partition, partWork } from "../../src/plan/partition.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { tinySpec } from "../helpers/tiny.ts";

/** A model whose head is worth anything from nothing to many layers. */
const randomSpec = (rng: Rng, layers = 1 + rng.below(10)): ModelSpec =>
  tinySpec({
    layers,
    vocab: 1 + rng.below(2000),
    intermediate: 8 + rng.below(90),
    windows: Array(layers).fill(null),
  });

/** All lists of `parts` multiples of `step` above 0 that add up to `total`. */
function* divisions(total: number, parts: number, step = 0.5): Generator<number[]> {
  if (parts === 1) yield [total];
  else
    for (let first = step; first <= total - (parts - 1) * step; first += step)
      for (const rest of divisions(total - first, parts - 1, step)) yield [first, ...rest];
}

/** The work of the busiest of stages with these numbers of layers. */
const busiestOf = (spec: ModelSpec, layers: readonly number[], targets: number): number =>
  maxOf(partition(spec, layers, targets).map((part) => partWork(spec, part, targets)));

const layersOf = (spec: ModelSpec, stages: number | readonly number[], targets = 1): number[] =>
  partition(spec, stages, targets).map(({ from, to }) => to - from);

function codeOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    if (error instanceof RequestError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return "none";
}

describe("the layers of the stages", () => {
  test("are all layers in their order, the ends marked", () => {
    const rng = new Rng(61);
    for (let i = 0; i < 300; i++) {
      const spec = randomSpec(rng, 1 + rng.below(80));
      const stages = 1 + rng.below(spec.layers);
      const parts = partition(spec, stages, 1);
      expect(parts.length).toBe(stages);
      expect(parts.map(({ from }) => from)).toEqual([0, ...parts.slice(0, -1).map(({ to }) => to)]);
      expect(parts.at(-1)!.to).toBe(spec.layers);
      expect(sum(parts.map((part) => layerWork(spec, part)))).toBeCloseTo(spec.layers, 9);
      for (const [at, { from, to, first, last }] of parts.entries()) {
        expect(to).toBeGreaterThan(from);
        expect([first, last]).toEqual([at === 0, at === stages - 1]);
      }
    }
  });

  test("leave the busiest stage as little work as any division does, the output head counted", () => {
    const rng = new Rng(62);
    let [unequal, halves] = [0, 0];
    for (let i = 0; i < 200; i++) {
      const spec = randomSpec(rng, 1 + rng.below(6));
      const stages = 1 + rng.below(spec.layers);
      const targets = rng.below(3) === 0 ? 1 : rng.uniform();
      const layers = layersOf(spec, stages, targets);
      const best = Math.min(...[...divisions(spec.layers, stages)].map((of) => busiestOf(spec, of, targets)));
      expect(busiestOf(spec, layers, targets)).toBeCloseTo(best, 8);
      if (layers[0]! > layers.at(-1)! + 1) unequal++;
      if (layers.some((count) => !Number.isInteger(count))) halves++;
    }
    expect(halves).toBeGreaterThan(50);
    expect(unequal).toBeGreaterThan(20); // heads that were worth layers
  });

  test("are those that were given, where they are the model's", () => {
    const rng = new Rng(63);
    for (let i = 0; i < 100; i++) {
      const spec = randomSpec(rng);
      const all = [...divisions(spec.layers, 1 + rng.below(Math.min(4, spec.layers)), rng.below(2) === 0 ? 0.5 : 1)];
      const given = all[rng.below(all.length)]!;
      expect(layersOf(spec, given)).toEqual(given);
      const at = rng.below(given.length);
      const wrong = given.with(at, given[at]! + 1);
      expect(codeOf(() => partition(spec, wrong, 1))).toMatch(
        new RegExp(`^plan.stages: .*= ${sum(wrong)} layers.* has ${spec.layers}$`),
      );
    }
  });

  test("are refused where there are more stages than layers", () => {
    const rng = new Rng(64);
    for (let i = 0; i < 50; i++) {
      const spec = randomSpec(rng);
      const stages = spec.layers + 1 + rng.below(5);
      expect(codeOf(() => partition(spec, stages, 1))).toMatch(
        new RegExp(`^plan.stages: ${stages} stages are more than the base model's ${counted(spec.layers, "layer")}$`),
      );
    }
  });

  test("of known models: the head of Llama 2 7B is 0.65 of a layer, that of Llama 3 8B 2.41", () => {
    const shape = { hidden: 4096, heads: 32, headDim: 128, layers: 32 };
    const llama2 = tinySpec({ ...shape, kvHeads: 32, intermediate: 11008, vocab: 32000 });
    const llama3 = tinySpec({ ...shape, kvHeads: 8, intermediate: 14336, vocab: 128256 });
    expect([headWork(llama2, 1), headWork(llama3, 1)].map((work) => work.toFixed(2))).toEqual(["0.65", "2.41"]);
    expect(layersOf(llama2, 2)).toEqual([16.5, 15.5]);
    expect(layersOf(llama2, 4)).toEqual([8.5, 8, 8, 7.5]);
    expect(layersOf(llama3, 4)).toEqual([9, 8.5, 8.5, 6]);
  });
});

test("on a GPU a layer also costs what it computes besides products, and these by its format", () => {
  const llama2 = shapeOf("llama2-7b");
  const headOn = (kind: "cpu" | "cuda", format: WeightFormat) => headWork(llama2, 1, costsOf({ kind }, format)).toFixed(2);
  expect(WEIGHT_FORMATS.map((format) => headOn("cpu", format))).toEqual(WEIGHT_FORMATS.map(() => "0.65"));
  const onGpu = Object.fromEntries(WEIGHT_FORMATS.map((format) => [format, headOn("cuda", format)]));
  expect(onGpu).toEqual({
    ...{ dense: "0.69", bf16: "0.69", "bf16-products": "0.69", int8: "0.59", nf4: "0.59", mxfp4: "0.59" },
    ...{ fp8: "1.02", "nf4-fp8": "0.91" },
  });
  const mixture = shapeOf("qwen3-30b-a3b");
  const parts = (kind: "cpu" | "cuda") => partition(mixture, 2, 1, costsOf({ kind }, "dense")).map(({ from, to }) => to - from);
  expect([parts("cpu"), parts("cuda")]).toEqual([
    [27, 21],
    [25.5, 22.5],
  ]);
});

describe("layers that share keys and values", () => {
  const kvSources = [null, null, null, null, 2, 3];
  const spec = tinySpec({ layers: 6, windows: Array(6).fill(null), kvSources });

  test("stay on the last stage, with those that make them", () => {
    expect(mostStages(spec)).toBe(3);
    expect(layersOf(spec, 1)).toEqual([6]);
    expect(layersOf(spec, 2)).toEqual([2, 4]);
    expect(layersOf(spec, 3)).toEqual([1, 1, 4]);
    expect(layersOf(spec, [1, 5])).toEqual([1, 5]);
  });

  test("are not parted at a request, which is refused with the way out", () => {
    expect(codeOf(() => layersOf(spec, 4))).toBe(
      "plan.stages: 4 stages are too many: the last 4 of the base model's 6 layers share keys and values",
    );
    expect(codeOf(() => layersOf(spec, [3, 3]))).toContain("the last 4 layers share keys and values, and stay together");
  });
});
