// Training and generation share stages by time, and neither waits where the other has no work.

import { expect, test } from "bun:test";
import { type PassKind, PassTurns } from "../../src/session/decoding/pass-turns.ts";

/** Plays passes of both kinds on a clock of its own; `has` says until when a kind has work. */
async function play(costs: Readonly<Record<PassKind, number>>, has: Readonly<Record<PassKind, number>>) {
  let time = 0;
  let underway = 0;
  const turns = new PassTurns(() => time);
  const order: PassKind[] = [];
  const work = async (kind: PassKind): Promise<void> => {
    while (time < has[kind]) {
      using _turn = await turns.take(kind);
      expect(++underway).toBe(1);
      await Bun.sleep(0); // the other kind asks meanwhile
      order.push(kind);
      time += costs[kind];
      underway--;
    }
  };
  await Promise.all([work("training"), work("generation")]);
  const taken = (kind: PassKind) => order.filter((of) => of === kind).length * costs[kind];
  return { order, training: taken("training"), generation: taken("generation") };
}

test("each has half of the time while both have work", async () => {
  for (const costs of [
    { training: 100, generation: 7 },
    { training: 3, generation: 20 },
    { training: 5, generation: 5 },
  ]) {
    const { training, generation } = await play(costs, { training: 1000, generation: 1000 });
    expect(Math.abs(training - generation)).toBeLessThanOrEqual(2 * Math.max(costs.training, costs.generation));
  }
});

test("one that has been alone for long owes the other nothing", async () => {
  const { order } = await play({ training: 10, generation: 10 }, { training: 1000, generation: 200 });
  const after = order.slice(order.lastIndexOf("generation") + 1);
  expect(after.length).toBeGreaterThan(70);
  const turns = new PassTurns(() => 0);
  for (let i = 0; i < 5; i++) (await turns.take("training"))[Symbol.dispose]();
  const both = [await turns.take("training"), await turns.take("training")]; // a GPU has its next pass at hand
  let begun = false;
  const waiting = turns.take("generation").then((turn) => {
    begun = true;
    return turn;
  });
  both[0]![Symbol.dispose]();
  await Bun.sleep(0);
  expect(begun).toBe(false);
  both[1]![Symbol.dispose]();
  (await waiting)[Symbol.dispose]();
});
