// One file call of a small run fails, is done by half, is late or is the last: the same command comes to the same bytes. The nightly script
// walks over all calls.

import { afterAll, expect, test } from "bun:test";
import { now } from "../../src/base/clock.ts";
import { Rng } from "../../src/base/rng.ts";
import { Injector, KINDS } from "../helpers/injector.ts";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";

const FAULTS = 50;
const FEWEST = 5;
const BUDGET_MS = 60_000;

needs("faults")("faults of file calls", () => {
  const place = new Workplace(1);
  afterAll(() => place[Symbol.dispose]());

  test(`${FAULTS} seeded ones, as many as a minute has room for`, async () => {
    const injector = new Injector(place);
    const calls = await injector.calls();
    expect(calls).toBeGreaterThan(100);
    const rng = new Rng(15);
    const end = now() + BUDGET_MS;
    let hit = 0;
    for (let i = 0; i < FAULTS && (i < FEWEST || now() < end); i++) {
      const { call } = await injector.come({ number: 1 + rng.below(calls), kind: KINDS[i % KINDS.length]! });
      if (call !== "") hit++;
    }
    expect(hit).toBeGreaterThan(0);
  }, 240_000);
});
