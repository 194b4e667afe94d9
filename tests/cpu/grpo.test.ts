// Adapters that learn from rewards of their own answers, on CPUs; and rewards that fail lose nothing.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { CpuDevice } from "../../src/device/cpu.ts";
import { type Asked, learnsAlike, RewardedPlace, rewardsRise, STEPS } from "../helpers/grpo.ts";
import { temperedLikeTrl } from "../helpers/grpo-golden.ts";

let place: RewardedPlace | null = null;
const on = () => place!;
/** The recipe of a run of each of the adapters by itself. */
const alone: string[] = [];
beforeAll(async () => {
  place = new RewardedPlace("cpu");
  for (const one of on().adapters(STEPS)) alone.push(await on().done(on().head() + one));
});
afterAll(() => place![Symbol.dispose]());

describe("alone, with others, in stages, and killed", () => learnsAlike(on, () => alone, 2));
rewardsRise(on);
temperedLikeTrl(() => new CpuDevice());

describe("a reward that fails", () => {
  const one = (steps: number) => on().adapters(steps)[0]!;

  test("once is asked again, and what is learned is the same", async () => {
    on().failures = 1;
    const { recipe, code, err } = await on().run(on().head() + one(STEPS));
    expect([code, err]).toEqual([0, expect.stringContaining("expected 8 rewards, found 1; it is asked again")]);
    expect(on().left(recipe, "g0")).toEqual(on().left(alone[0]!, "g0"));
  });

  test("always stops its adapter alone, saved; the same command continues, also with more time for rewards", async () => {
    const failing = on().head("checkpoint = { steps = 1 }") + one(STEPS) + on().adapters(STEPS)[2]!;
    const recipe = on().project(failing.replace("/share", "/other"));
    const share = on().rewards["share"]!;
    let answered = 0;
    on().rewards["other"] = (of: Asked) => (answered++ < 8 ? share(of) : "none");
    const first = await on().place.mlora("run", recipe);
    expect([first.code, first.err]).toEqual([1, expect.stringContaining("1 of 2 adapters failed: g0\nhint: fix what")]);
    expect(first.out).toMatch(/g0 +stopped +1 /);
    expect(first.out).toMatch(/g2 +done +4 /);
    expect(first.err).toContain('expected a number or null as reward 1, found "none"');
    on().rewards["other"] = share;
    writeFileSync(recipe, readFileSync(recipe, "utf8").replace('name = "share" }', 'name = "share", seconds = 900 }'));
    expect(await on().place.mlora("run", recipe)).toMatchObject({ code: 0 });
    expect(on().left(recipe, "g0").weights).toBe(on().left(alone[0]!, "g0").weights);
  });

  test("as a program is named with what it did, and one that is not there before anything begins", async () => {
    const program = (...command: readonly string[]) =>
      on().head() + one(1).replace(on().at("share"), `{ command = ${JSON.stringify(command)} }`);
    const rows = await on().run(program("awk", '{ n = gsub(/[aeiou]/, ""); print n / 8 }'));
    expect([rows.code, on().answers(rows.recipe).length]).toEqual([0, 8]);
    expect(await on().run(program("no-such-program"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("there is no program"),
    });
    expect(await on().run(program("/etc/passwd"))).toMatchObject({
      code: 2,
      err: expect.stringContaining("'/etc/passwd' is not an executable file\nhint: make it one"),
    });
    expect(await on().run(program("sh", "-c", "echo 1; exit 3"))).toMatchObject({
      err: expect.stringContaining("sh ended with 3"),
    });
  });
});
