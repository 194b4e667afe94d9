// Which adapters of a sweep continue at a rung.

import { expect, test } from "bun:test";
import { survivors } from "../../src/schedule/sweeps.ts";

const at = (...losses: readonly number[]) => losses.map((loss, i) => ({ loss, i }));
const kept = (losses: readonly number[], keep: number) => survivors(at(...losses), keep).map(({ i }) => i);

test("the share with the lowest losses continues, rounded up, one at least, of equal ones the earlier", () => {
  expect(kept([3, 1, 2, 5, 4], 0.5)).toEqual([1, 2, 0]);
  expect(kept([3, 1, 2, 5], 0.5)).toEqual([1, 2]);
  expect(kept([2, 2, 2, 1], 0.5)).toEqual([3, 0]);
  expect(kept([2, 1], 0.01)).toEqual([1]);
  expect(kept([2], 0.3)).toEqual([0]);
});

test("a loss that is no number is the worst of all, infinite ones among them in their order", () => {
  expect(kept([Number.NaN, 7, Number.POSITIVE_INFINITY, 6], 0.75)).toEqual([3, 1, 0]);
  expect(kept([Number.NaN, Number.NaN], 0.5)).toEqual([0]);
});
