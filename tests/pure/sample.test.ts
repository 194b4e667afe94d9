// Sampling: what may come, how often it comes, and that chance is a function of the seed.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { candidates, choose, likeliest, type Sampling } from "../../src/base/sample.ts";
import { range } from "../../src/base/shape.ts";

const rng = new Rng(4);
const logitsOf = (n: number, scale = 2) => Float32Array.from({ length: n }, () => scale * rng.normal());

/** The same by the book: softmax of all, sorted, cut; transformers' order. */
function byTheBook(logits: Float32Array, { temperature, topK, topP }: Sampling): Map<number, number> {
  const order = range(logits.length).sort((a, b) => logits[b]! - logits[a]! || a - b);
  let kept = topK > 0 ? order.slice(0, topK) : order;
  const weigh = (tokens: readonly number[]) => {
    const weights = tokens.map((i) => Math.exp((logits[i]! - logits[order[0]!]!) / temperature));
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / total);
  };
  const before = weigh(kept).map((_, i, all) => all.slice(0, i).reduce((a, b) => a + b, 0));
  if (topP < 1) kept = kept.filter((_, i) => i === 0 || before[i]! < topP);
  return new Map(weigh(kept).map((p, i) => [kept[i]!, p]));
}

describe("the tokens that may come", () => {
  test("are those of temperature, then top-k, then top-p", () => {
    for (const n of [1, 2, 7, 300])
      for (const temperature of [0.3, 1, 2.5])
        for (const topK of [0, 1, 2, 5, 1000])
          for (const topP of [1, 0.99, 0.9, 0.5, 0.01]) {
            const sampling = { temperature, topK, topP };
            const logits = logitsOf(n);
            const [got, want] = [new Map(candidates(logits, sampling)), byTheBook(logits, sampling)];
            expect([...got.keys()], JSON.stringify(sampling)).toEqual([...want.keys()]);
            for (const [token, p] of want) expect(got.get(token)!).toBeCloseTo(p, 10);
            expect([...got.values()].reduce((a, b) => a + b, 0)).toBeCloseTo(1, 10);
          }
  });

  test("come as often as they should", () => {
    const logits = logitsOf(40);
    for (const sampling of [
      { temperature: 1, topK: 0, topP: 1 },
      { temperature: 1.5, topK: 8, topP: 1 },
      { temperature: 0.8, topK: 0, topP: 0.8 },
    ]) {
      const want = byTheBook(logits, sampling);
      const [n, chance] = [40_000, new Rng(9)];
      const counts = new Map<number, number>();
      for (let i = 0; i < n; i++) {
        const { token } = choose(logits, sampling, chance.uniform());
        counts.set(token, (counts.get(token) ?? 0) + 1);
      }
      for (const token of counts.keys()) expect(want.has(token)).toBe(true);
      let chiSquare = 0; // with as many degrees of freedom as tokens less one: mean k, deviation sqrt(2 k)
      for (const [token, p] of want) chiSquare += ((counts.get(token) ?? 0) - n * p) ** 2 / (n * p);
      const k = want.size - 1;
      expect(chiSquare).toBeLessThan(k + 5 * Math.sqrt(2 * k));
    }
  });
});

test("without a temperature the first of the likeliest comes, whatever the chance", () => {
  const logits = Float32Array.from([1, 3, -2, 3, 0]);
  expect(likeliest(logits)).toBe(1);
  for (const uniform of [0, 0.5, 0.999]) expect(choose(logits, { temperature: 0, topK: 0, topP: 1 }, uniform).token).toBe(1);
});

test("what is not likely at all never comes, and the ends of chance are tokens", () => {
  const logits = Float32Array.from([0, Number.NEGATIVE_INFINITY, 1, -1e30]);
  const sampling = { temperature: 1, topK: 0, topP: 1 };
  expect(new Set([0, 0.3, 0.9, 1 - 2 ** -24].map((uniform) => choose(logits, sampling, uniform).token))).toEqual(
    new Set([0, 2]),
  );
});

test("logits that are no numbers give no token", () => {
  for (const broken of [Number.NaN, Number.POSITIVE_INFINITY])
    for (const temperature of [0, 1]) {
      const { token, logProb } = choose(Float32Array.from([0, broken, 1]), { temperature, topK: 0, topP: 1 }, 0.5);
      expect([token, logProb]).toEqual([-1, Number.NaN]);
    }
});

test("a token comes with its log-probability, by the logits and among what it was drawn from", () => {
  for (const sampling of [
    { temperature: 0, topK: 0, topP: 1 },
    { temperature: 0.7, topK: 0, topP: 1 },
    { temperature: 1.5, topK: 9, topP: 0.8 },
    { temperature: 0.7, topK: 1, topP: 1 },
  ]) {
    const logits = logitsOf(60);
    const own = byTheBook(logits, { temperature: 1, topK: 0, topP: 1 });
    const drawn = sampling.temperature === 0 ? own : byTheBook(logits, sampling);
    for (const uniform of [0, 0.2, 0.6, 0.95]) {
      const { token, logProb, drawnLogProb } = choose(logits, sampling, uniform);
      expect(logProb).toBeCloseTo(Math.log(own.get(token)!), 9);
      expect(drawnLogProb).toBeCloseTo(Math.log(drawn.get(token)!), 9);
    }
  }
});
