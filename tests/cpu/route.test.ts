// Which experts a token gets: the choice with its ties, the order of the sorted rows, and the gradient through the weights
// against finite differences.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { Router } from "../../src/base/spec.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { expertTile } from "../../src/device/tile.ts";
import { NORMALISED } from "../../src/families/moe.ts";
import { route, routeBackward, takeRoutes } from "../../src/ops/route.ts";

const [M, E, K, L] = [96, 8, 3, 2];
/** Rows that attend to nothing. */
const PADDING = [46, 47, 71];

const device = new CpuDevice(2);
/** Of tiles of rows: two adapters, and none. */
const ADAPTERS = range(M / device.rowTile).map((t) => [0, 0, 1, -1][Math.floor((4 * t * device.rowTile) / M)]!);
const arena = new Arena(device, 1 << 22, "tables of a test");
const floats = (values: Float32Array, ...shape: number[]): Tensor => {
  const to = arena.tensor("f32", ...shape);
  device.write(to, values);
  return to;
};
const ints = (values: readonly number[], ...shape: number[]): Tensor => {
  const to = arena.tensor("i32", ...shape);
  device.write(to, Int32Array.from(values));
  return to;
};
const readInts = async (of: Tensor) => [...new Int32Array((await device.read(of)).buffer)];
const readFloats = async (of: Tensor) => [...new Float32Array((await device.read(of)).buffer)];

const tile = expertTile(device);
const routes = takeRoutes(
  (dtype, ...shape) => arena.tensor(dtype, ...shape),
  { rows: M, adapters: L, experts: E, perToken: K },
  tile,
);
const bounds = ints(
  range(M).flatMap((m) => [m, PADDING.includes(m) ? m : m + 1]),
  M,
  2,
);
const tileAdapter = ints(ADAPTERS, ADAPTERS.length);

async function routed(logits: Float32Array, router: Router = NORMALISED, correction: Float32Array | null = null) {
  const of = { logits: floats(logits, M, E), correction: correction && floats(correction, E), router };
  route(device, { ...of, bounds, tileAdapter, adapters: L, routes });
  const [experts, weights] = [await readInts(routes.experts), await readFloats(routes.weights)];
  return { logits: of.logits, experts, weights };
}

const random = (seed: number): Float32Array => {
  const rng = new Rng(seed);
  return Float32Array.from({ length: M * E }, () => 2 * rng.normal());
};

describe("the choice", () => {
  test("of logits that are the same the experts come in their order", async () => {
    const { experts, weights } = await routed(new Float32Array(M * E).fill(1.5));
    expect(experts.slice(0, K)).toEqual([0, 1, 2]);
    for (const weight of weights.slice(0, K)) expect(weight).toBeCloseTo(1 / K, 6);
    const logits = Float32Array.from({ length: M * E }, (_, i) => [0, 3, 1, 3, 3, 0, 3, 2][i % E]!);
    expect((await routed(logits)).experts.slice(0, K)).toEqual([1, 3, 4]);
  });

  test("rows that attend to nothing have no expert, the others as many as they should, the best first", async () => {
    const logits = random(1);
    const { experts, weights } = await routed(logits);
    for (const m of range(M)) {
      const own = experts.slice(m * K, (m + 1) * K);
      if (PADDING.includes(m)) expect(own).toEqual([-1, -1, -1]);
      else {
        const of = [...logits.subarray(m * E, (m + 1) * E)];
        expect(own).toEqual(
          range(E)
            .sort((a, b) => of[b]! - of[a]!)
            .slice(0, K),
        );
        const exps = own.map((e) => Math.exp(of[e]!));
        for (const j of range(K)) expect(weights[m * K + j]!).toBeCloseTo(exps[j]! / sum(exps), 5);
      }
    }
  });

  test("groups are dropped by their two best scores, and a correction chooses without counting", async () => {
    const router: Router = { score: "sigmoid", normalise: true, eps: 1e-20, groups: 4, keptGroups: 2, scaling: 2.5 };
    const logits = Float32Array.from({ length: M * E }, (_, i) => [4, -4, 1, 1, 2, -9, 1.1, 1.2][i % E]!);
    const correction = Float32Array.from([-0.6, 0, 0, 0, 0, 0, 0, 0]);
    const { experts, weights } = await routed(logits, router, correction);
    // Scores of groups: 0.40, 1.46, 0.88, 1.52: the last and the second stay.
    expect(experts.slice(0, K)).toEqual([7, 6, 2]);
    const scores = [1.2, 1.1, 1].map((x) => 1 / (1 + Math.exp(-x)));
    for (const j of range(K)) expect(weights[j]!).toBeCloseTo((2.5 * scores[j]!) / sum(scores), 5);
  });
});

test("with a softmax groups are dropped by their best score alone, the lower group first where two are as good", async () => {
  const router: Router = { ...NORMALISED, normalise: false, groups: 4, keptGroups: 2, scaling: 3 };
  const own = [1, 1, 0.9, 0.8, 1.5, -9, 1, -9]; // best of groups: 1, 0.9, 1.5, 1; by sums of two the third and fourth would go
  const { experts, weights } = await routed(
    Float32Array.from({ length: M * E }, (_, i) => own[i % E]!),
    router,
  );
  expect(experts.slice(0, K)).toEqual([4, 0, 1]);
  const exps = own.map(Math.exp);
  for (const [j, e] of [4, 0, 1].entries()) expect(weights[j]!).toBeCloseTo((3 * exps[e]!) / sum(exps), 5); // shares of all
});

test("rows are sorted by expert, adapter and row, each adapter's from a tile on; an expert may have none", async () => {
  const logits = random(2);
  for (const m of range(M)) logits[m * E + 5] = -100; // never chosen
  const { experts } = await routed(logits);
  const [source, place] = [await readInts(routes.source), await readInts(routes.place)];
  const [firstRow, counts] = [await readInts(routes.firstRow), await readInts(routes.counts)];
  const [tileExpert, tileOf] = [await readInts(routes.tileExpert), await readInts(routes.tileAdapter)];
  const adapterOf = (m: number) => ADAPTERS[Math.floor(m / device.rowTile)]!;
  expect(firstRow[5]).toBe(firstRow[6]!);
  for (const [pair, expert] of experts.entries()) expect(expert < 0 ? -1 : source[place[pair]!]).toBe(expert < 0 ? -1 : pair);
  const found: number[] = [];
  for (const [t, expert] of tileExpert.entries()) {
    const pairs = source.slice(t * tile, (t + 1) * tile).filter((pair) => pair >= 0);
    expect(expert).toBeLessThan(E);
    expect(pairs.length > 0, `tile ${t}`).toBe(expert >= 0);
    for (const pair of pairs) {
      expect([experts[pair], adapterOf(Math.floor(pair / K))]).toEqual([expert, tileOf[t]!]);
      found.push(pair);
    }
  }
  const key = (pair: number) => [experts[pair]!, (adapterOf(Math.floor(pair / K)) + L + 1) % (L + 1), pair];
  const sorted = [...found].sort((a, b) => key(a)[0]! - key(b)[0]! || key(a)[1]! - key(b)[1]! || a - b);
  expect(found).toEqual(sorted);
  expect(found.length).toBe((M - PADDING.length) * K);
  expect(sum(counts)).toBe(found.length);
  const tilesBefore = (e: number) => tileExpert.filter((expert) => expert >= 0 && expert < e).length;
  expect(firstRow).toEqual(range(E + 1).map((e) => tilesBefore(e) * tile));
  expect(counts[5]! + counts[E + 5]! + counts[2 * E + 5]!).toBe(0);
});

const ROUTERS: readonly Router[] = [
  NORMALISED,
  { ...NORMALISED, normalise: false },
  { ...NORMALISED, scaling: 1.7 },
  { ...NORMALISED, normalise: false, groups: 2, keptGroups: 1, scaling: 2.5 },
  { score: "sigmoid", normalise: true, eps: 1e-20, groups: 2, keptGroups: 1, scaling: 2.5 },
  { score: "sigmoid", normalise: false, eps: 1e-20, groups: 1, keptGroups: 1, scaling: 1 },
];

test.each(ROUTERS)("the gradient through the weights of %p agrees with finite differences", async (router) => {
  const logits = random(3);
  const rng = new Rng(4);
  const dweights = Float32Array.from({ length: M * K }, () => rng.normal());
  const before = await routed(logits, router);
  const dlogits = floats(new Float32Array(M * E), M, E);
  routeBackward(device, { logits: before.logits, router, routes, dweights: floats(dweights, M, K), dlogits });
  const gradient = await readFloats(dlogits);
  for (const m of PADDING) expect(gradient.slice(m * E, (m + 1) * E)).toEqual(range(E).map(() => 0));
  for (const e of range(E)) {
    const lossOf = async (step: number) => {
      const moved = logits.map((value, i) => (i % E === e ? value + step : value));
      const { experts, weights } = await routed(moved, router);
      return { experts, loss: range(M).map((m) => sum(range(K).map((j) => weights[m * K + j]! * dweights[m * K + j]!))) };
    };
    const [up, down] = [await lossOf(0.01), await lossOf(-0.01)];
    for (const m of range(M)) {
      const same = range(K).every((j) => up.experts[m * K + j] === down.experts[m * K + j]);
      if (same) expect(gradient[m * E + e]!).toBeCloseTo((up.loss[m]! - down.loss[m]!) / 0.02, 3);
    }
  }
});
