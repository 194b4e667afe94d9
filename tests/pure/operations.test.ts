// What attention is counted as, compared with a count of what each token sees.

import { expect, test } from "bun:test";
import { range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { evaluationsOf, operationsOf } from "../../src/plan/operations.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";

/** A plan that evaluates rows of one adapter twice and has nothing to train. */
const planOf = (spec: ModelSpec, lengths: readonly number[]) =>
  ({
    spec,
    targets: 0,
    stages: [{ sizes: { recomputation: "none" } }],
    adapters: [
      { recipe: { evalEvery: null }, steps: 3, evalRows: lengths.length, parameters: 0, tokens: 0, work: { lengths } },
    ],
  }) as unknown as Plan;

/** Of one row read once: operations of all that are not in a product with a weight. */
function attentionOf(spec: ModelSpec, length: number): number {
  const of = (lengths: readonly number[]) => operationsOf(planOf(spec, lengths), [lengths]).evaluation / 2;
  return of([length]) - (of(range(length).map(() => 1)) - length * of1(spec));
}
/** Of one token that sees itself alone. */
const of1 = (spec: ModelSpec): number => sum(widths(spec).map(({ features }) => 2 * features));

/** Features of all heads of each attention and its window, as the configs have them. */
function widths(spec: ModelSpec) {
  return range(spec.layers).flatMap((layer) => {
    if (spec.delta?.layers[layer] || spec.mamba?.layers[layer]) return [];
    const window = spec.windows[layer] ?? null;
    const headDim = window === null ? (spec.fullHeads?.headDim ?? spec.headDim) : spec.headDim;
    return [{ features: spec.heads * headDim, window }];
  });
}

test("attention is counted from heads, windows and the layers that have one, not from the hidden size", () => {
  const names = [
    "llama2-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "gpt-oss-20b",
    "glm4.7-flash",
    "gemma3-4b",
    "gemma4-12b",
    "qwen3.5-4b",
  ];
  for (const name of names) {
    const spec = shapeOf(name);
    for (const length of [1, 7, 600, 3001]) {
      /** The half of itself that a token sees is that of what is continuous. */
      const seen = (window: number | null) =>
        sum(range(length).map((at) => (window === null || at < window ? at + 0.5 : window)));
      const wanted = sum(widths(spec).map(({ features, window }) => 2 * 2 * features * seen(window)));
      expect(attentionOf(spec, length) / wanted, `${name}, ${length} tokens`).toBeCloseTo(1, 6);
    }
  }
});

test("rows are evaluated before the first step, at regular steps, and after the last", () => {
  const count = (evalEvery: number | null, steps: number, evalRows = 1) =>
    evaluationsOf({ recipe: { evalEvery }, steps, evalRows } as Plan["adapters"][number]);
  expect([count(null, 9), count(3, 9), count(3, 10), count(4, 9), count(9, 9), count(1, 1), count(3, 9, 0)]).toEqual([
    ...[2, 4, 5, 4, 2, 2, 0],
  ]);
});
