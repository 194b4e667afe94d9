// Which adapters share a pass is decided without looking at each adapter for each question, and is what looking at all says.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { inOrder, memberOf, Pool, type PoolOptions } from "../../src/schedule/balance.ts";
import { fitBuffers, GradientRoom, largestNext } from "../../src/schedule/gradients.ts";
import { PlainPool } from "../helpers/plain-pool.ts";
import { randomWork } from "../helpers/works.ts";

const descending = (a: number, b: number) => b - a;

test("the largest that fits next to others is found once: whatever is no larger fits, whatever is larger does not", () => {
  const rng = new Rng(5);
  const seen = new Map<boolean, number>();
  for (let i = 0; i < 5_000; i++) {
    const most = 1 + rng.below(9);
    const draw = (n: number) => range(n).map(() => rng.below(most));
    const buffers = draw(1 + rng.below(7)).sort(descending);
    const sizes = draw(rng.below(buffers.length + 2)).sort(descending);
    const limit = largestNext(sizes, buffers);
    for (const size of range(most + 1)) {
      const fits = fitBuffers([...sizes, size].sort(descending), buffers);
      expect(size <= limit).toBe(fits);
      seen.set(fits, (seen.get(fits) ?? 0) + 1);
    }
  }
  expect(Math.min(...seen.values())).toBeGreaterThan(1_000);
});

test("the needs of a crowd are compared with one limit of each stage, not sorted among those in a step", () => {
  const buffers = [range(16).map(() => 8), range(16).map((i) => 16 - i)];
  let asked = 0;
  const needed = (adapter: number) => {
    asked++;
    return [adapter % 8, adapter % 16];
  };
  const room = new GradientRoom({ buffers, needed });
  for (const adapter of range(9)) room.take(adapter);
  asked = 0;
  const { fits } = room.selection();
  for (const adapter of range(3_000)) fits(adapter);
  expect(asked).toBe(3_000 - 9); // those in a step are known to fit
});

test("the first few of many come in the order of a sort, and cost few comparisons", () => {
  const rng = new Rng(6);
  for (const n of [0, 1, 2, 3, 10, 100, 3_000]) {
    const all = range(n).map((id) => ({ id, key: rng.below(1 + n / 3) }));
    let compared = 0;
    const before = (a: (typeof all)[number], b: (typeof all)[number]) => {
      compared++;
      return a.key - b.key || a.id - b.id;
    };
    const sorted = all.toSorted(before);
    expect([...inOrder([...all], before)]).toEqual(sorted);
    compared = 0;
    const first = inOrder([...all], before);
    const few = range(Math.min(n, 24)).map(() => first.next().value);
    expect(few).toEqual(sorted.slice(0, 24));
    expect(compared).toBeLessThanOrEqual(2 * n + 24 * 2 * Math.ceil(Math.log2(n + 2)));
  }
});

test("random pools decide as if all adapters were looked at each time", () => {
  const rng = new Rng(7);
  let [passes, shared, refused] = [0, 0, 0];
  for (let i = 0; i < 250; i++) {
    const stages = 1 + rng.below(4);
    const sizes = range(30).map(() => range(stages).map(() => 1 + rng.below(6)));
    const some = (stage: number) => sizes.map((of) => of[stage]!).sort(descending);
    const many = 1 + rng.below(12);
    const buffers = range(stages).map((stage) => some(stage).slice(0, many));
    const options: PoolOptions = {
      kind: rng.below(5) === 0 ? "1f1b" : "lorapp",
      packing: (["balanced", "filled", "alone"] as const)[rng.below(3)]!,
      passRows: 64 + rng.below(512),
      stages,
      ...(rng.below(4) === 0 ? {} : { gradients: { buffers, needed: (adapter: number) => sizes[adapter]! } }),
    };
    const pools = [new Pool(options), new PlainPool(options)] as const;
    const both = <T>(ask: (pool: Pool | PlainPool) => T): T => {
      const [mine, plain] = pools.map(ask);
      expect(mine).toEqual(plain!);
      return mine!;
    };
    const limits = { tokensPerMicrobatch: 32 + rng.below(100), passRows: options.passRows, rowTile: 16 };
    const join = (adapter: number) => {
      const work = randomWork(rng);
      const from = rng.below(2);
      const priority = rng.below(3);
      for (const pool of pools) pool.add(memberOf(adapter, work, from, limits, priority));
    };
    for (const adapter of range(1 + rng.below(29))) join(adapter);
    const ended: number[] = []; // mini-batches whose last micro-batch was taken
    const released: number[] = [];
    for (let now = 0; now < 120; now++) {
      const at = both((pool) => pool.readyAt());
      both((pool) => pool.waiting.map(({ adapter, passed, ready, rows }) => [adapter, passed, ready, rows]));
      both((pool) => pool.leavesWork());
      const undecided = new Set(range(30).filter(() => rng.below(9) === 0));
      if (both((pool) => pool.hasOther(now, undecided)) && at <= now) {
        const target = 1 + rng.below(options.passRows);
        const { segments } = both((pool) => pool.take(now, target, undecided));
        for (const { adapter, last } of segments) if (last) ended.push(adapter);
        passes++;
        if (segments.length > 1) shared++;
      } else refused++;
      if (rng.below(2) === 0)
        for (const adapter of ended.splice(0, 1 + rng.below(3))) {
          for (const pool of pools) pool.release(adapter, now);
          released.push(adapter);
        }
      if (rng.below(2) === 0)
        for (const adapter of released.splice(0, 1 + rng.below(3))) for (const pool of pools) pool.stepped(adapter);
      const gone = rng.below(12) === 0 ? rng.below(30) : -1;
      for (const pool of pools) pool.sift((adapter) => adapter === gone);
      if (rng.below(20) === 0 && !ended.includes(gone) && !released.includes(gone) && gone >= 0) join(gone);
    }
  }
  expect(Math.min(passes, refused)).toBeGreaterThan(1_000);
  expect(shared).toBeGreaterThan(300);
});
