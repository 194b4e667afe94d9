// Which layers each stage holds, compared with all ways of dividing them, on models small enough to try them all.

import { describe, expect, test } from "bun:test";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { headWork, mostStages, partition } from "../../src/plan/partition.ts";
import { tinySpec } from "../helpers/tiny.ts";

/** A model whose head is worth anything from nothing to many layers. */
const randomSpec = (rng: Rng, layers = 1 + rng.below(10)): ModelSpec =>
  tinySpec({
    layers,
    vocab: 1 + rng.below(2000),
    intermediate: 8 + rng.below(90),
    windows: Array(layers).fill(null),
  });

/** All lists of `parts` numbers of at least 1 that add up to `total`. */
function* divisions(total: number, parts: number): Generator<number[]> {
  if (parts === 1) yield [total];
  else
    for (const first of range(total - parts + 1))
      for (const rest of divisions(total - first - 1, parts - 1)) yield [first + 1, ...rest];
}

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
  test("are all layers in their order, one at least on each stage, the ends marked", () => {
    const rng = new Rng(61);
    for (let i = 0; i < 300; i++) {
      const spec = randomSpec(rng, 1 + rng.below(80));
      const stages = 1 + rng.below(spec.layers);
      const parts = partition(spec, stages, 1);
      expect(parts.length).toBe(stages);
      expect(parts.flatMap(({ from, to }) => range(to - from).map((i) => from + i))).toEqual(range(spec.layers));
      for (const [at, { from, to, first, last }] of parts.entries()) {
        expect(to).toBeGreaterThan(from);
        expect([first, last]).toEqual([at === 0, at === stages - 1]);
      }
    }
  });

  test("leave the busiest stage as little work as any division does, the output head counted", () => {
    const rng = new Rng(62);
    let unequal = 0;
    for (let i = 0; i < 200; i++) {
      const spec = randomSpec(rng);
      const stages = 1 + rng.below(spec.layers);
      const targets = rng.below(3) === 0 ? 1 : rng.uniform();
      const busiest = (layers: readonly number[]) => maxOf(layers.with(-1, layers.at(-1)! + headWork(spec, targets)));
      const layers = layersOf(spec, stages, targets);
      const best = Math.min(...[...divisions(spec.layers, stages)].map(busiest));
      expect(busiest(layers)).toBeCloseTo(best, 12);
      // Of the others the earlier have more.
      for (const at of range(Math.max(0, stages - 2))) expect(layers[at]).toBeGreaterThanOrEqual(layers[at + 1]!);
      if (layers[0]! > layers.at(-1)! + 1) unequal++;
    }
    expect(unequal).toBeGreaterThan(20); // heads that were worth layers
  });

  test("are those that were given, where they are the model's", () => {
    const rng = new Rng(63);
    for (let i = 0; i < 100; i++) {
      const spec = randomSpec(rng);
      const all = [...divisions(spec.layers, 1 + rng.below(spec.layers))];
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
        new RegExp(`^plan.stages: ${stages} stages are more than the base model's ${spec.layers} layers$`),
      );
    }
  });

  test("of known models: the head of Llama 2 7B is 0.65 of a layer, that of Llama 3 8B 2.41", () => {
    const shape = { hidden: 4096, heads: 32, headDim: 128, layers: 32 };
    const llama2 = tinySpec({ ...shape, kvHeads: 32, intermediate: 11008, vocab: 32000 });
    const llama3 = tinySpec({ ...shape, kvHeads: 8, intermediate: 14336, vocab: 128256 });
    expect([headWork(llama2, 1), headWork(llama3, 1)].map((work) => work.toFixed(2))).toEqual(["0.65", "2.41"]);
    expect(layersOf(llama2, 4)).toEqual([8, 8, 8, 8]);
    expect(layersOf(llama3, 4)).toEqual([9, 9, 9, 5]);
  });
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
