// `mlora plan` of a pipeline, from the command line: numbers for machines, and drawings for people.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());
const path = place.project(unlike([0, 1, 2, 3], "cpu"), SUMS);
const plan = (flags: readonly string[], environment: Readonly<Record<string, string>> = {}) =>
  place.start(["plan", path, ...flags], environment).ended;

test("numbers of a schedule are those of its stages", async () => {
  const { code, out } = await plan(["--stages", "2", "--json"]);
  expect(code).toBe(0);
  const { schedule, stages, slots, memory_model: model } = JSON.parse(out);
  expect(stages.map(({ layers }: { layers: [number, number] }) => layers)).toEqual([
    [0, expect.any(Number)],
    [expect.any(Number), 4],
  ]);
  expect(slots).toBe(4);
  expect(schedule.whole_run).toBe(true);
  expect(schedule.bubble).toBeGreaterThanOrEqual(0);
  expect(schedule.bubble).toBeLessThan(1);
  expect(schedule.makespan_over_lower_bound).toBeGreaterThanOrEqual(1);
  expect(schedule.passes).toBeGreaterThan(6);
  expect(model.b1).toBeGreaterThan(0);
  const one = JSON.parse((await plan(["--stages", "1", "--json"])).out);
  expect("schedule" in one).toBe(false);
});

test("the terminal gets a row a stage; colours where they are wanted", async () => {
  const { code, out } = await plan(["--stages", "3"]);
  expect(code).toBe(0);
  expect(out.match(/^stage \d {2}[A-Za-z.]+$/gm)?.length).toBe(3);
  expect(out).toContain("Bubble ");
  expect(out).not.toContain("\x1b[");
  const forced = await plan(["--stages", "3"], { FORCE_COLOR: "1" });
  expect(forced.out).toContain("\x1b[");
  const none = await plan(["--stages", "3"], { FORCE_COLOR: "1", NO_COLOR: "1" });
  const drawn = (text: string) => text.match(/^(stage|steps) .*$/gm);
  expect(none.out).not.toContain("\x1b[");
  expect(drawn(none.out)).toEqual(drawn(out));
});

test.each(["1", "2"])("--svg draws, whole or not at all: %s stages", async (stages) => {
  const file = join(place.root, `drawn-${stages}.svg`);
  const { code, out } = await plan(["--stages", stages, "--svg", file]);
  expect([code, out]).toEqual([0, expect.stringContaining("the schedule is drawn in")]);
  expect(readFileSync(file, "utf8")).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
  expect(readdirSync(place.root).filter((name) => name.endsWith(".tmp"))).toEqual([]);
});

test("a drawing that cannot be written is refused at once", async () => {
  const missing = await plan(["--svg", join(place.root, "none", "x.svg")]);
  expect([missing.code, missing.out]).toEqual([2, ""]);
  expect(missing.err).toMatch(/^error\[cli\.svg\]: --svg .*: the folder .* is not there\nhint: /);
  mkdirSync(join(place.root, "folder"));
  const folder = await plan(["--svg", join(place.root, "folder")]);
  expect([folder.code, folder.err]).toEqual([2, expect.stringContaining("is a folder")]);
  expect(existsSync(join(path, "..", "out"))).toBe(false);
});
