// Adapters that do not fit at once: each waits for the memory that it takes, and comes out as if all had fitted.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, range, sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import type { StageRequest } from "../../src/bus/messages.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { bytesOnStages, makePlan } from "../../src/plan/plan.ts";
import { admissions, type Candidate, type Room } from "../../src/schedule/admission.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import { memoryStore } from "../../src/session/state/checkpoints.ts";
import { run } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-admission-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("admitted are", () => {
  const used = (of: readonly Candidate[]): Room => ({
    slots: of.length,
    bytes: [0, 1].map((stage) => sum(of.map(({ bytes }) => bytes[stage]!))),
  });
  const candidate = (rng: Rng, adapter: number): Candidate => ({
    ...{ adapter, priority: rng.below(3), arrived: adapter },
    bytes: [1 + rng.below(9), 1 + rng.below(9)],
  });
  const isBefore = (a: Candidate, b: Candidate) =>
    b.priority < a.priority || (b.priority === a.priority && a.arrived < b.arrived);

  test("no more than there is room for, in their order, and preempted is only what has a lower priority and helps", () => {
    for (let round = 0; round < 2000; round++) {
      const rng = new Rng(round, 9);
      const all = range(10).map((i) => candidate(rng, i));
      const [waiting, active, leaving] = [all.slice(0, 5), all.slice(5, 8), all.slice(8, rng.below(3) + 8)];
      const free: Room = { slots: rng.below(4), bytes: [rng.below(20), rng.below(20)] };
      const { admit, preempt } = admissions(waiting, active, free, used(leaving));
      const admitted = waiting.filter(({ adapter }) => admit.includes(adapter));
      const taken = used(admitted);
      expect(taken.slots).toBeLessThanOrEqual(free.slots);
      for (const stage of [0, 1]) expect(taken.bytes[stage]!).toBeLessThanOrEqual(free.bytes[stage]!);
      const left = waiting.filter((of) => !admitted.includes(of));
      for (const of of admitted) for (const other of left) expect(isBefore(of, other)).toBe(true); // none is overtaken
      const victims = active.filter(({ adapter }) => preempt.includes(adapter));
      const first = left.toSorted((a, b) => (isBefore(a, b) ? -1 : 1))[0];
      for (const victim of victims) expect(victim.priority).toBeLessThan(maxOf(left.map(({ priority }) => priority)));
      if (!first || victims.length === 0) continue;
      const room = [free, used(leaving), used(victims)];
      const total = (stage: number) => sum(room.map((of) => of.bytes[stage]!)) - taken.bytes[stage]!;
      for (const stage of [0, 1]) expect(total(stage)).toBeGreaterThanOrEqual(first.bytes[stage]!);
    }
  });

  test("what is preempted is what is needed: one less would be too few, and where more would help there is none to take", () => {
    let [needed, left] = [0, 0];
    for (let round = 0; round < 2000; round++) {
      const rng = new Rng(round, 10);
      const all = range(10).map((i) => candidate(rng, i));
      const [waiting, active, leaving] = [all.slice(0, 5), all.slice(5, 8), all.slice(8, rng.below(3) + 8)];
      const free: Room = { slots: rng.below(3), bytes: [rng.below(12), rng.below(12)] };
      const { admit, preempt } = admissions(waiting, active, free, used(leaving));
      const queue = waiting.filter(({ adapter }) => !admit.includes(adapter)).sort((a, b) => (isBefore(a, b) ? -1 : 1));
      const admitted = waiting.filter(({ adapter }) => admit.includes(adapter));
      /** How many of the queue fit, in its order, when all these have left. */
      const fitting = (gone: readonly Candidate[], more: readonly Candidate[] = []) => {
        const rooms = [free, used(leaving), used(gone), used(more)];
        const isIn = (count: number) => {
          const taken = used([...admitted, ...queue.slice(0, count)]);
          const has = (stage: number) => sum(rooms.map(({ bytes }) => bytes[stage]!)) >= taken.bytes[stage]!;
          return sum(rooms.map(({ slots }) => slots)) >= taken.slots && has(0) && has(1);
        };
        let count = 0;
        while (count < queue.length && isIn(count + 1)) count++;
        return count;
      };
      const victims = preempt.map((adapter) => active.find((of) => of.adapter === adapter)!);
      expect(new Set(preempt).size).toBe(preempt.length);
      const count = fitting(victims);
      if (victims.length > 0) expect(fitting(victims.slice(0, -1)), `round ${round}`).toBeLessThan(count);
      const next = queue[count];
      const others = active.filter((of) => !victims.includes(of) && next && of.priority < next.priority);
      if (next) expect(fitting(victims, others), `round ${round}`).toBe(count);
      needed += victims.length;
      left += Number(next !== undefined && others.length > 0);
    }
    expect(Math.min(needed, left)).toBeGreaterThan(100);
  });
});

test("a run never holds more than its memory, and every adapter learns what it does where all fit", async () => {
  const golden = loadGolden("llama");
  const spec = readModelSpec(golden.model);
  const recipe = goldenRecipe(golden);
  const ranks = [4, 48, 6, 8, 32];
  const adapters = ranks.map((rank, i) => ({
    ...recipe.adapters[i % 2]!,
    name: `r${rank}`,
    rank,
    steps: 3,
    epochs: null,
    initialAdapter: null,
  }));
  const rows = adapters.map((_, i) => golden.adapters[i % 2]!.rows);
  const summaries = rows.map((of) => ({
    train: of.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: 1 })),
    eval: [],
  }));
  const device = { ...chooseDevice("cpu", "fp32"), host: "" };
  const roomy = makePlan({ ...recipe, adapters }, spec, summaries, [device]);
  const bytes = roomy.adapters.map((adapter) => bytesOnStages(roomy, adapter)[0]!);

  async function trained(blockBytes: number) {
    const stages = roomy.stages.map((stage) => ({ ...stage, sizes: { ...stage.sizes, blockBytes } }));
    const plan = { ...roomy, adapters: [...roomy.adapters], stages };
    await using opened = await openLocalStages(setupsOf(plan, { folder: golden.model }));
    const held = new Map<number, number>();
    let [most, together] = [0, 0];
    const bus: Bus = {
      stages: 1,
      request: (stage, asked) => {
        const request = asked as StageRequest;
        if (request.type === "admit") held.set(request.slot, bytes[ranks.indexOf(request.adapter.rank)]!);
        if (request.type === "release") held.delete(request.slot);
        [most, together] = [Math.max(most, sum(held.values())), Math.max(together, held.size)];
        return opened.request(stage, asked);
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    const data = rows.map((train) => ({ train, eval: [] }));
    const stop = new AbortController().signal;
    const result = await run({ plan, data, bus, output: null, emit: () => undefined, store: memoryStore(), stop });
    const losses = result.adapters.map(({ name, status, firstLoss, lastLoss }) => [name, status, firstLoss, lastLoss]);
    return { losses, most, together, left: held.size };
  }
  const all = await trained(sum(bytes));
  expect([all.together, all.left]).toEqual([5, 0]);
  expect(all.losses.map(([, status]) => status)).toEqual(ranks.map(() => "done"));
  const tight = maxOf(bytes) + Math.min(...bytes);
  const some = await trained(tight);
  expect(some.most).toBeLessThanOrEqual(tight);
  expect(some.together).toBeLessThan(5);
  expect(some.together).toBeGreaterThan(1);
  expect(some.losses).toEqual(all.losses);
});
