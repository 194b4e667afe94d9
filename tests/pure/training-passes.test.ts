// Training passes of the primitives over stages: nothing waits for what will never be sent, and stages compute at one time.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import type { MicroBatch } from "../../src/schedule/micro-batch.ts";
import { TrainingPasses } from "../../src/session/training-passes.ts";

type Asked = { readonly type: string; readonly pass: number; readonly adapters?: readonly number[] };

/**
 * Stages that take their requests in order: a forward after that of the stage before, a backward after that of the next stage
 * and after its own forward. `order` is what each has done; `most` how many passes it had between the two ways at most.
 */
function played(stages: number) {
  const order = range(stages).map(() => [] as string[]);
  const done = new Map<string, PromiseWithResolvers<void>>();
  const at = (stage: number, { type, pass }: Asked) => {
    const key = `${stage} ${type} ${pass}`;
    if (!done.has(key)) done.set(key, Promise.withResolvers<void>());
    return done.get(key)!;
  };
  const last = range(stages).map(() => Promise.resolve());
  const held = range(stages).map(() => 0);
  const most = [...held];
  const request = (stage: number, asked: Asked): Promise<unknown> => {
    const before = last[stage]!;
    if (asked.type === "squares") {
      last[stage] = before.then(() => void order[stage]!.push(`squares of ${asked.adapters}`));
      return last[stage]!.then(() => asked.adapters!.map((slot) => Float32Array.of(stage, slot)));
    }
    const needs = asked.type === "forward" ? stage - 1 : stage + 1;
    last[stage] = (async () => {
      await before;
      if (needs >= 0 && needs < stages) await at(needs, asked).promise;
      held[stage] = held[stage]! + (asked.type === "forward" ? 1 : -1);
      most[stage] = Math.max(most[stage]!, held[stage]!);
      order[stage]!.push(`${asked.type} ${asked.pass}`);
      at(stage, asked).resolve();
    })();
    return last[stage]!.then(() => (stage === stages - 1 && asked.type === "backward" ? [asked.pass] : null));
  };
  return { bus: { stages, request } as unknown as Bus, order, most };
}

describe.each([1, 2, 3, 5])("over %i stages", (stages) => {
  test("every pass comes back, in order, whenever there is no other, and no stage holds more than there are from it on", async () => {
    for (const seed of range(30)) {
      const rng = new Rng(seed);
      const { bus, order, most } = played(stages);
      const passes = new TrainingPasses(bus);
      const count = 1 + rng.below(12);
      const found: unknown[] = [];
      for (const _ of range(count)) {
        void passes.run({} as MicroBatch).then((losses) => found.push(losses));
        if (rng.below(3) === 0) passes.finish();
        if (rng.below(2) === 0) await Bun.sleep(0);
      }
      passes.finish();
      await Bun.sleep(1);
      expect(found, `seed ${seed}`).toEqual(range(count).map((pass) => [pass]));
      for (const [stage, of] of order.entries()) {
        for (const type of ["forward", "backward"])
          expect(of.filter((one) => one.startsWith(type))).toEqual(range(count).map((pass) => `${type} ${pass}`));
        expect(most[stage]!).toBeLessThanOrEqual(stages - stage);
      }
    }
  });

  test("the squares of gradients that a pass completes are asked for right after its backward, of each stage", async () => {
    for (const seed of range(20)) {
      const rng = new Rng(seed);
      const { bus, order } = played(stages);
      const passes = new TrainingPasses(bus);
      const found = new Map<number, Promise<readonly Float32Array[]>>();
      const ends = range(2 + rng.below(8)).map((pass) => range(rng.below(3)).map((i) => 10 * pass + i));
      const all = ends.map((slots) =>
        passes.run(
          {} as MicroBatch,
          slots.map((slot) => ({ slot, ended: (squares: Promise<readonly Float32Array[]>) => found.set(slot, squares) })),
        ),
      );
      passes.finish();
      await Promise.all(all);
      for (const of of order)
        for (const [pass, slots] of ends.entries()) {
          const next = of[of.indexOf(`backward ${pass}`) + 1];
          if (slots.length > 0) expect(next, `seed ${seed}`).toBe(`squares of ${slots}`);
          else expect(next ?? "").not.toStartWith("squares");
        }
      for (const slot of ends.flat())
        expect(await found.get(slot)).toEqual(range(stages).map((stage) => Float32Array.of(stage, slot)));
    }
  });

  test("squares are asked for of those alone that want them", async () => {
    const { bus, order } = played(stages);
    const passes = new TrainingPasses(bus);
    let squares: Promise<readonly Float32Array[]> | null = null;
    const wants = {
      slot: 4,
      ended: (found: Promise<readonly Float32Array[]>) => {
        squares = found;
      },
    };
    const all = [passes.run({} as MicroBatch, [{ slot: 3 }, wants, { slot: 5 }]), passes.run({} as MicroBatch, [{ slot: 6 }])];
    passes.finish();
    await Promise.all(all);
    for (const of of order) expect(of.filter((one) => one.startsWith("squares"))).toEqual(["squares of 4"]);
    expect(await squares!).toEqual(range(stages).map((stage) => Float32Array.of(stage, 4)));
  });

  test("a stage has computed later forwards before a gradient comes to it", async () => {
    const { bus, order } = played(stages);
    const passes = new TrainingPasses(bus);
    const all = range(stages + 3).map(() => passes.run({} as MicroBatch));
    await all[0]; // it comes back while others are under way
    passes.finish();
    await Promise.all(all);
    for (const [stage, of] of order.entries())
      for (const pass of range(4)) {
        const before = of.slice(0, of.indexOf(`backward ${pass}`)).filter((one) => one.startsWith("forward")).length;
        expect(before - pass).toBe(stages - stage);
      }
  });
});
