// `mlora plan` of a pipeline, from the command line: numbers for machines, and drawings and advice for people.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());
const path = place.project(unlike([0, 1, 2, 3], "cpu"), SUMS);

/** Whatever the tests' own terminal needs of colours. */
const NEUTRAL = { FORCE_COLOR: "", NO_COLOR: "" };
const planOf = (recipe: string, flags: readonly string[], environment: Readonly<Record<string, string>> = {}) =>
  place.start(["plan", recipe, ...flags], { ...NEUTRAL, ...environment }).ended;
const plan = (...flags: readonly string[]) => planOf(path, flags);
const filesIn = (folder: string) => readdirSync(folder).toSorted();
const percent = (segment: number) => `${(100 * segment).toFixed(1)} %`;

describe("numbers of a schedule", () => {
  test("are those of its stages, for machines as for people", async () => {
    const { code, out } = await plan("--stages", "2", "--json");
    expect(code).toBe(0);
    const { schedule, stages, slots, memory_model: model } = JSON.parse(out);
    const [[from, cut], [next, to]] = stages.map(({ layers }: { layers: [number, number] }) => layers);
    expect([from, next, to, slots]).toEqual([0, cut, 4, 4]);
    const { bubble, steady_bubble: steady, makespan_over_lower_bound: over, passes, whole_run: whole } = schedule;
    for (const segment of [bubble, steady]) {
      expect(segment).toBeGreaterThanOrEqual(0);
      expect(segment).toBeLessThan(1);
    }
    expect(over).toBeGreaterThanOrEqual(1);
    expect(Number.isInteger(passes)).toBe(true);
    expect(passes).toBeGreaterThanOrEqual(9); // the steps of the adapter with the most
    expect(whole).toBe(true);
    expect(model.b1).toBeGreaterThan(0);

    const said = (await plan("--stages", "2")).out.replaceAll("\n", " ");
    expect(said).toContain(`Bubble ${percent(bubble)} of all stages' time, ${percent(steady)} in the steady part`);
    expect(said).toContain(`shorter than ${(1 / over).toFixed(3)} of this (${passes} passes, the whole run).`);
  });

  test("of one stage are not printed", async () => {
    const { code, out } = await plan("--stages", "1");
    expect([code, out]).toEqual([0, expect.not.stringMatching(/bubble|^stage|Drawn/im)]);
    expect(JSON.parse((await plan("--stages", "1", "--json")).out)).not.toHaveProperty("schedule");
  });
});

test("the terminal gets a row a stage; colours where they are wanted", async () => {
  const { code, out } = await plan("--stages", "3");
  expect(code).toBe(0);
  expect(out.match(/^stage \d {2}[A-Za-z.]+$/gm)?.length).toBe(3);
  const drawing = (text: string) => text.slice(text.search(/^stage 0/m)); // what is before it tells free memory
  const colours = async (environment: Readonly<Record<string, string>>) => {
    const { out: drawn } = await planOf(path, ["--stages", "3"], environment);
    expect(drawing(Bun.stripANSI(drawn))).toBe(drawing(out));
    return drawn.includes("\x1b[");
  };
  expect(out).not.toContain("\x1b"); // a pipe is no terminal
  expect(await colours({ FORCE_COLOR: "1" })).toBe(true);
  expect(await colours({ FORCE_COLOR: "0" })).toBe(false);
  expect(await colours({ FORCE_COLOR: "1", NO_COLOR: "1" })).toBe(false);
  const { out: json } = await planOf(path, ["--stages", "3", "--json"], { FORCE_COLOR: "1" });
  expect(json).not.toContain("\x1b");
});

describe("--svg", () => {
  test.each(["1", "2"])("draws a file in place of what was there: %s stages", async (stages) => {
    const folder = join(place.root, `drawn-${stages}`);
    mkdirSync(folder);
    const [file, old] = [join(folder, "plan.svg"), join(folder, "old.svg")];
    writeFileSync(file, "what was there");
    linkSync(file, old);
    const { code, out } = await plan("--stages", stages, "--svg", file);
    expect([code, out]).toEqual([0, expect.stringContaining("the schedule is drawn in")]);
    const svg = readFileSync(file, "utf8");
    expect(svg).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    for (const lane of ["stage 0", "stage 1"].slice(0, Number(stages))) expect(svg).toContain(`>${lane}<`);
    expect(svg).not.toContain(`>stage ${stages}<`);
    expect(readFileSync(old, "utf8")).toBe("what was there"); // another file took its name: half of one is never seen
    expect(filesIn(folder)).toEqual(["old.svg", "plan.svg"]);
  });

  test("draws in addition to numbers for machines, and names the recipe whatever it is called", async () => {
    const odd = join(dirname(path), `odd <&"'>.toml`);
    writeFileSync(odd, readFileSync(path));
    const { code, out } = await planOf(odd, ["--stages", "2", "--json", "--svg", join(place.root, "odd.svg")]);
    expect([code, JSON.parse(out).recipe]).toEqual([0, odd]);
    const svg = readFileSync(join(place.root, "odd.svg"), "utf8");
    expect(svg).toContain("<title>odd &lt;&amp;&quot;&#x27;&gt;.toml: 4 adapters on model in 2 stages</title>");
    expect(svg).not.toMatch(/&(?!(amp|lt|gt|quot|#x27);)/);
  });

  test("that cannot be written is refused in one line with a way out, before anything else", async () => {
    const folder = join(place.root, "folder");
    mkdirSync(folder);
    for (const [file, what] of [
      [join(place.root, "none", "x.svg"), `the folder ${join(place.root, "none")} is not there`],
      [join(path, "x.svg"), `the folder ${path} is not there`],
      [folder, "is a folder"],
    ] as const) {
      const { code, out, err } = await planOf("no-such-recipe.toml", ["--svg", file]);
      expect([code, out]).toEqual([2, ""]);
      expect(err).toMatch(/^error\[cli\.svg\]: .*\nhint: .*\n$/);
      expect(err).toStartWith(`error[cli.svg]: --svg ${file}: ${what}\n`);
    }
    expect([existsSync(join(place.root, "none")), filesIn(folder)]).toEqual([false, []]);
  });

  test("leaves what was there where there is no plan to draw", async () => {
    const file = join(place.root, "kept.svg");
    writeFileSync(file, "what was there");
    const { code } = await plan("--stages", "99", "--svg", file);
    expect([code, readFileSync(file, "utf8")]).toEqual([2, "what was there"]);
    expect(filesIn(place.root).filter((name) => name.startsWith("kept"))).toEqual(["kept.svg"]);
  });
});

describe("advice", () => {
  const CHANGES = {
    "run.tokens_per_microbatch": { adapters: [1, 3], more: "" },
    "run.slots": { adapters: [0, 1, 2, 3, 4, 5, 6, 7], more: "slots = 2" },
  } as const;

  test.each(Object.keys(CHANGES) as (keyof typeof CHANGES)[])("to change %s keeps its promise", async (key) => {
    const { adapters, more } = CHANGES[key];
    const recipe = place.project(unlike(adapters, "cpu", more), SUMS);
    const said = (await planOf(recipe, ["--stages", "4"])).out.replaceAll("\n", " ");
    const [, name, value, promised] = /fill them\. (\S+) = (\S+) \(now .*?: ([\d.]+ %) in the steady part/.exec(said)!;
    expect(name).toBe(key);
    const line = new RegExp(`^${key.slice("run.".length)} = .*$`, "m");
    const text = readFileSync(recipe, "utf8");
    expect(text).toMatch(line);
    writeFileSync(recipe, text.replace(line, `${key.slice("run.".length)} = ${value}`));
    const { schedule } = JSON.parse((await planOf(recipe, ["--stages", "4", "--json"])).out);
    expect(percent(schedule.steady_bubble)).toBe(promised!);
  });
});
