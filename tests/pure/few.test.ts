// Work that holds much memory: few pieces at once, in order, whatever some of them end with.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { Few } from "../../src/session/scheduling/few.ts";

test("no more than a few pieces of work run at once, each begins in its turn, and a failure is its own", async () => {
  const few = new Few(3);
  const begun: number[] = [];
  let [running, most] = [0, 0];
  const work = (i: number) => async (): Promise<number> => {
    begun.push(i);
    most = Math.max(most, ++running);
    for (const _ of range(1 + ((i * 7) % 5))) await Promise.resolve();
    running--;
    if (i % 4 === 1) throw new Error(`${i}`);
    return i;
  };
  const ended = await Promise.allSettled(range(20).map((i) => few.run(work(i))));
  expect(begun).toEqual(range(20));
  expect([running, most]).toEqual([0, 3]);
  for (const [i, of] of ended.entries())
    expect(of.status === "fulfilled" ? of.value : of.reason.message).toBe(i % 4 === 1 ? `${i}` : i);
  expect(await few.run(async () => "later")).toBe("later");
});
