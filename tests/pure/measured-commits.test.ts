// Measurements name the commit that was measured, by which it can be measured again: one of this history, or one of which its
// page says that it is not there (a branch that was laid on others after it was measured has other commits).

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { needs } from "../helpers/needs.ts";

const ROOT = join(import.meta.dir, "../..");
const PAGES = [...new Bun.Glob("docs/**/*.{md,csv}").scanSync(ROOT)].sort();

/** What looks like a commit: eight hexadecimal digits, of which some are letters and some are not. */
const commitsIn = (text: string): string[] => [...new Set(text.match(/\b(?=[0-9a-f]*[a-f])(?=[a-f]*\d)[0-9a-f]{8}\b/g) ?? [])];

const isAncestor = (commit: string): boolean =>
  Bun.spawnSync(["git", "merge-base", "--is-ancestor", commit, "HEAD"], { cwd: ROOT, stderr: "ignore" }).success;

needs("history")("measured commits", () => {
  test("are of this history, unless their page says otherwise", () => {
    const [missing, known]: [string[], Map<string, boolean>] = [[], new Map()];
    for (const page of PAGES) {
      const text = readFileSync(join(ROOT, page), "utf8");
      const excepted = commitsIn((text.match(/^Not in this history[^.]*\./gm) ?? []).join(" "));
      for (const commit of commitsIn(text))
        if (!excepted.includes(commit) && !known.getOrInsertComputed(commit, () => isAncestor(commit)))
          missing.push(`${page}: ${commit}`);
    }
    expect(missing).toEqual([]);
    expect(known.size).toBeGreaterThan(20);
    expect([isAncestor("0".repeat(8)), isAncestor([...known.keys()][0]!)]).toEqual([false, true]);
  });
});
