// The processes of a run are killed at seeded moments, while adapters are kept, exported, join and are forked: the same command
// comes to the same bytes. The nightly script makes 500 kills.

import { afterAll, expect, test } from "bun:test";
import { now } from "../../src/base/clock.ts";
import { Killer } from "../helpers/killer.ts";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";

const KILLS = 50;
const OF_ONE = 3;
const FEWEST = 3;
const BUDGET_MS = 10_000;

needs("nats")("kills of a run's processes", () => {
  const place = new Workplace(3);
  afterAll(() => place[Symbol.dispose]());

  test(`${KILLS} at seeded moments, as many as 10 s have room for`, async () => {
    const killer = new Killer(place);
    await killer.prepare();
    const end = now() + BUDGET_MS;
    let kills = 0;
    for (let i = 0; kills < KILLS && (kills < FEWEST || now() < end); i++)
      kills += (await killer.come(50, i, OF_ONE)).kills.length;
    expect(kills).toBeGreaterThanOrEqual(FEWEST);
  }, 600_000);
});
