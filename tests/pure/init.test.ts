// What adapters begin with: the distributions that PEFT has, and nothing added to the base model.

import { describe, expect, test } from "bun:test";
import { type FactorAt, initialise, type Random } from "../../src/engine/pool/random-init.ts";

const at = (factor: "A" | "B", rank: number, outer: number, more: Partial<FactorAt> = {}): FactorAt => ({
  seed: 7,
  layer: 3,
  linear: "o_proj",
  factor,
  rows: factor === "A" ? rank : outer,
  columns: factor === "A" ? outer : rank,
  ...more,
});
const deviation = (values: Float32Array): number => {
  const mean = values.reduce((a, b) => a + b) / values.length;
  return Math.sqrt(values.reduce((total, x) => total + (x - mean) ** 2, 0) / values.length);
};

describe.each(["default", "gaussian", "orthogonal"] as const satisfies readonly Random[])("%s", (init) => {
  test("adds nothing: B A is zero", () => {
    for (const [rank, inner, outer] of [
      [2, 5, 3],
      [8, 33, 64],
      [16, 40, 24],
    ] as const) {
      const [a, b] = [initialise(init, at("A", rank, inner)), initialise(init, at("B", rank, outer))];
      for (let o = 0; o < outer; o++)
        for (let i = 0; i < inner; i++) {
          let product = 0;
          for (let r = 0; r < rank; r++) product += b[o * rank + r]! * a[r * inner + i]!;
          expect(Math.abs(product)).toBeLessThan(1e-7);
        }
    }
  });

  test("is a function of seed and place", () => {
    const values = (more: Partial<FactorAt>) => initialise(init, at("A", 4, 32, more));
    expect(values({})).toEqual(values({}));
    for (const other of [{ seed: 8 }, { layer: 4 }, { linear: "q_proj" as const }])
      expect(values(other)).not.toEqual(values({}));
  });
});

test("A is spread as PEFT spreads it", () => {
  expect(deviation(initialise("default", at("A", 16, 4000)))).toBeCloseTo(1 / Math.sqrt(4000) / Math.sqrt(3), 4);
  expect(deviation(initialise("gaussian", at("A", 16, 4000)))).toBeCloseTo(1 / 16, 3);
});

test("orthogonal: both factors are as large as PEFT's, and neither is zero", () => {
  // Each entry is a sum of rank / 2 normal numbers times entries of a unit vector, over 10: a deviation of sqrt(1/2) / 10.
  for (const factor of ["A", "B"] as const)
    expect(deviation(initialise("orthogonal", at(factor, 8, 5000)))).toBeCloseTo(Math.SQRT1_2 / 10, 2);
});
