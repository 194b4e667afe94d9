// The primitives over stages in processes of their own: requests and replies as they travel, and the same bits.

import { afterAll, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { openPrimitives } from "../../src/session/primitives/open.ts";
import type { Primitives } from "../../src/session/primitives/primitives.ts";
import { CACHE, PrimitivesPlace, ROWS, weighted } from "../helpers/primitives.ts";

const place = new PrimitivesPlace();
afterAll(() => place[Symbol.dispose]());

/** All that comes of a few steps and samples of two adapters. */
async function outcome(on: Primitives) {
  const found: unknown[] = [];
  for (const step of range(2))
    for (const name of ["lora", "dora"]) {
      const rows = weighted(ROWS.slice(0, 4), (row, token) => Math.sin(row + token + step));
      const { loss, rows: of } = await on.forwardBackward(name, rows);
      found.push(loss, ...of.map(({ logProbs }) => Buffer.from(logProbs.buffer).toString("hex")));
      found.push(await on.step(name));
      const [samples] = await on.sample(name, [[5, 6, 7]], { maxTokens: 6, n: 2, sampling: { temperature: 1 } });
      found.push(samples!.map(({ ids, logProbs }) => [ids, [...logProbs]]));
    }
  return found;
}

test("two processes do what one does", async () => {
  await using one = await openPrimitives(place.recipe(["lora", "dora"]), { cache: CACHE });
  await using two = await openPrimitives(place.recipe(["lora", "dora"], { stages: 2 }), { cache: CACHE });
  expect(two.bus.stages).toBe(2);
  expect(await outcome(two)).toEqual(await outcome(one));
});
