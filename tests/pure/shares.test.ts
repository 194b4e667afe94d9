// Owners have their shares of what is computed, however much each asks for.

import { expect, test } from "bun:test";
import { range, sum } from "../../src/base/shape.ts";
import { Shares } from "../../src/session/decoding/shares.ts";

type Item = { readonly owner: string; readonly size: number };

/** Passes of `room`, each of what is open in its turn; every item is open again in the next. What each owner has had. */
function served(items: readonly Item[], passes: number, room: number, shares: Shares): Record<string, number> {
  const had: Record<string, number> = {};
  for (const _ of range(passes)) {
    let left = room;
    for (const { owner, size } of shares.inTurn(items, (item) => item.owner)) {
      if (size > left) continue;
      left -= size;
      shares.charge(owner, size);
      had[owner] = (had[owner] ?? 0) + size;
    }
  }
  return had;
}

/** Jain's index of fairness: 1 where all are served alike. */
const jain = (values: readonly number[]): number => sum(values) ** 2 / (values.length * sum(values.map((value) => value ** 2)));

const many = (owner: string, count: number, size: number): Item[] => range(count).map(() => ({ owner, size }));

test("one with many items has no more than one with a few", () => {
  const items = [...many("a", 50, 1), ...many("b", 3, 4), ...many("c", 8, 2), ...many("d", 1, 5)];
  const had = served(items, 200, 20, new Shares());
  expect(jain(Object.values(had))).toBeGreaterThan(0.98);
});

test("weights are of shares, and what one cannot use goes to the others", () => {
  const items = [...many("a", 50, 1), ...many("b", 50, 1)];
  const weighted = served(items, 200, 12, new Shares((owner) => (owner === "a" ? 3 : 1)));
  expect(weighted["a"]! / weighted["b"]!).toBeCloseTo(3, 1);
  const small = served([...many("a", 50, 1), ...many("b", 1, 1)], 100, 10, new Shares());
  expect(small).toEqual({ a: 900, b: 100 });
});

test("one that comes later has no claim for the time before", () => {
  const shares = new Shares();
  served(many("a", 9, 1), 100, 9, shares);
  const had = served([...many("a", 9, 1), ...many("b", 9, 1)], 10, 9, shares);
  expect(Math.abs(had["a"]! - had["b"]!)).toBeLessThanOrEqual(1);
});
