// Which evaluation is the best, and which count for patience: over seeded losses, some of them no numbers.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { type Best, updateBest, whyEarly } from "../../src/schedule/sweeps.ts";

/** All that is remembered after these losses, at steps 10, 20, ...; each is judged twice, as it is where a run continues. */
const after = (losses: readonly number[], minDelta: number): Best =>
  losses.reduce<Best | null>((best, loss, i) => {
    const next = updateBest(best, loss, 10 * (i + 1), minDelta);
    const again = updateBest(JSON.parse(JSON.stringify(next)), loss, 10 * (i + 1), minDelta);
    if (!Number.isNaN(next.loss)) expect(again).toEqual(next);
    return next;
  }, null)!;

test("the best is the lowest, whatever patience asks for; patience counts from a loss that was lower by its delta", () => {
  for (let seed = 0; seed < 300; seed++) {
    const rng = new Rng(seed, 0x5ee9);
    const minDelta = [0, 0.05, 0.3][seed % 3]!;
    const losses = Array.from({ length: 1 + (seed % 12) }, () => (rng.uniform() < 0.15 ? Number.NaN : 2 + rng.normal() * 0.3));
    const found = after(losses, minDelta);
    const numbers = losses.filter((loss) => !Number.isNaN(loss));
    if (numbers.length > 0) {
      const lowest = Math.min(...numbers);
      expect([found.loss, found.step], `seed ${seed}`).toEqual([lowest, 10 * (losses.indexOf(lowest) + 1)]);
    } else expect(found.step).toBe(10);
    let [mark, since] = [Number.POSITIVE_INFINITY, 0];
    for (const loss of losses)
      if (loss < mark - minDelta) [mark, since] = [loss, 0];
      else since++;
    expect(found.since, `seed ${seed}`).toBe(since);
  }
});

test("steps by less than the delta end an adapter, with the last of them as its best", () => {
  const found = after([2, 1.95, 1.91], 0.1);
  expect(found).toEqual({ loss: 1.91, step: 30, since: 2, judged: 30, mark: 2 });
  expect(whyEarly(found, 0.1)).toBe("not better by 0.1 in 2 evaluations; step 30 was the best");
  expect(after([2, 1.95, 1.89], 0.1)).toEqual({ loss: 1.89, step: 30, since: 0, judged: 30 });
  expect(whyEarly(after([2, 3], 0), 0)).toBe("no better than at step 10 since");
});

test("a loss as low as the best is no better, and of losses that are no numbers none is counted from", () => {
  expect(after([2, 2, 2], 0)).toEqual({ loss: 2, step: 10, since: 2, judged: 30 });
  expect(after([2, 1.5], 0.5)).toEqual({ loss: 1.5, step: 20, since: 1, judged: 20, mark: 2 });
  expect(after([Number.NaN, Number.NaN], 0)).toEqual({ loss: Number.NaN, step: 10, since: 2, judged: 20 });
});
