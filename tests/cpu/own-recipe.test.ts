// A run never writes over what it reads: the recipe in its own output folder, also by another name.

import { afterAll, expect, test } from "bun:test";
import { linkSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(1);
afterAll(() => place[Symbol.dispose]());

const text = `# why these numbers matter\n${unlike([1], "cpu")}`;
const names = { itself: null, "a hard link": linkSync, "a symbolic link": symlinkSync } as const;
for (const [what, link] of Object.entries(names))
  test(`the recipe stays as it was written where the output has ${what}`, async () => {
    const path = place.project(link ? text : text.replace('output = "out"', 'output = "."'), SUMS);
    if (link) {
      mkdirSync(join(path, "..", "out"));
      link(path, join(path, "..", "out", "recipe.toml"));
    }
    const { code, err } = await place.mlora("run", path);
    expect([code, err]).toEqual([2, expect.stringContaining("error[output.foreign]")]);
    expect(readFileSync(path, "utf8")).toBe(text.replace('output = "out"', link ? 'output = "out"' : 'output = "."'));
  });
