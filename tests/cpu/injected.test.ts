// One file call of a small run fails, is done by half, is late or is the last: the same command comes to the same bytes. The
// nightly script walks over all calls.

import { afterAll, expect, test } from "bun:test";
import { now } from "../../src/base/clock.ts";
import { Rng } from "../../src/base/rng.ts";
import { Injector, KINDS } from "../helpers/injector.ts";
import { needs } from "../helpers/needs.ts";
import { Workplace } from "../helpers/program.ts";

const FAULTS = 50;
const FEWEST = 5;
const BUDGET_MS = 15_000;

needs("faults")("faults of file calls", () => {
  const place = new Workplace(1);
  afterAll(() => place[Symbol.dispose]());

  test(`${FAULTS} seeded ones, as many as 15 s have room for`, async () => {
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

  test("an adapter that cannot be written, or read back, loses none of its steps", async () => {
    const injector = new Injector(place);
    await injector.calls();
    const kinds: string[] = [];
    for (let number = 1; ; number += 3) {
      const { call, first, second } = await injector.come({ number, kind: "EIO", below: "a0/adapter_model.safetensors" });
      if (call === "") break;
      kinds.push(call.split(" ")[1]!);
      expect([call, first.code, first.err]).toEqual([call, 1, expect.stringContaining("1 of 2 adapters failed: a0")]);
      expect([call, second.err]).toEqual([call, expect.stringContaining("a0 at step 5 of 5")]);
    }
    expect(kinds).toEqual(expect.arrayContaining(["write", "pread"]));
  }, 240_000);

  test("on a file system that cannot sync folders the run works, with a notice of each thread that writes", async () => {
    const injector = new Injector(place);
    await injector.calls();
    const { first } = await injector.come({ number: 0, kind: "unsynced" });
    expect(first.code).toBe(0);
    const said = /^notice: .* cannot be synced \(EINVAL: .*\): a power cut may undo the last files written$/gm;
    const count = first.err.match(said)?.length ?? 0;
    expect(count).toBeGreaterThanOrEqual(1); // its own
    expect(count).toBeLessThanOrEqual(5); // and those of the four that save small adapters
  }, 240_000);
});
