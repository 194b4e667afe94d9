// All kinds, objectives and optimizers in one run, from the command line: each comes out as it does alone.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { signalled } from "../helpers/middle.ts";
import { MIXED_FILES, MIXED_NAMES, mixedRecipe } from "../helpers/mixed.ts";
import { areKept, leftOf, longer, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

/** Four to seven steps of each, where whether it learns is not the question. */
const few = (text: string) => text.replaceAll(/^steps = (\d+)$/gm, (_, steps) => `steps = ${Number(steps) - 5}`);

async function done(names: readonly string[], run: object = {}, precision = "auto"): Promise<string> {
  const recipe = mixedRecipe(names, "cpu", run, precision);
  const path = place.project(precision === "auto" ? recipe : few(recipe), MIXED_FILES);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return path;
}

test("each equals its run alone, bit for bit, on one stage and on two, and each learns", async () => {
  const together = await done(MIXED_NAMES);
  const variants = [await done(MIXED_NAMES, { stages: 2 }), await done(MIXED_NAMES.toReversed(), { slots: 5 })];
  for (const name of MIXED_NAMES) {
    const here = leftOf(outputOf(together), name);
    for (const other of [await done([name]), ...variants]) expect(leftOf(outputOf(other), name), name).toEqual(here);
    expect(Number(here.evaluations.at(-1)!["loss"]), name).toBeLessThan(Number(here.evaluations[0]!["loss"]));
  }
}, 300_000);

for (const precision of ["int8", "nf4"])
  test(`over a base in ${precision} each equals its run with half of the others, on two stages`, async () => {
    const together = await done(MIXED_NAMES, {}, precision);
    const last = (name: string) => Number(leftOf(outputOf(together), name).steps.at(-1)!["step"]);
    expect(new Set(MIXED_NAMES.map(last))).toEqual(new Set([4, 5, 6, 7]));
    for (const half of [0, 1]) {
      const names = MIXED_NAMES.filter((_, i) => i % 2 === half);
      const apart = await done(names, { stages: 2 }, precision);
      for (const name of names) expect(leftOf(outputOf(apart), name), name).toEqual(leftOf(outputOf(together), name));
    }
  }, 300_000);

test("killed and continued, it comes to the same; a changed optimizer is refused", async () => {
  const names = MIXED_NAMES.filter((name) =>
    /sgd|nesterov|plain|eight|lengths|vectors|sft|cit|pissa|rounds|olora|places/.test(name),
  );
  const { path, text } = await signalled(
    "SIGKILL",
    (factor) => {
      const text = longer(mixedRecipe(names, "cpu", { checkpoint: { steps: 3 } }), 3 * factor);
      const path = place.project(text, MIXED_FILES);
      return { path, text, running: place.start(["run", path]) };
    },
    // what was not kept has nothing to differ from
    ({ path }) => areKept(outputOf(path), ["nesterov", "eight"]),
  );
  await Bun.write(path, text.replace("momentum = 0.8", "momentum = 0.7"));
  const changed = await place.mlora("run", path);
  expect([changed.code, changed.err]).toEqual([2, expect.stringContaining("'nesterov': momentum was 0.8, is 0.7")]);
  await Bun.write(path, text.replace('optimizer = "adamw-8bit"', 'optimizer = "adamw"'));
  const other = await place.mlora("run", path);
  expect([other.code, other.err]).toEqual([2, expect.stringContaining(`optimizer was "adamw-8bit", is "adamw"`)]);
  await Bun.write(path, text);
  expect((await place.mlora("run", path)).code).toBe(0);
  const undisturbed = place.project(text, MIXED_FILES);
  expect((await place.mlora("run", undisturbed)).code).toBe(0);
  for (const name of names) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(undisturbed), name));
}, 300_000);
