// Paths, numbers and times as messages print them.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { counted, duration, readText, shortPath } from "../../src/base/units.ts";

test("a path is shown from the working folder, and names of what lies elsewhere as they are", () => {
  expect(shortPath(join(process.cwd(), "data", "rows.jsonl"))).toBe(join("data", "rows.jsonl"));
  expect(shortPath(process.cwd())).toBe(".");
  for (const name of ["hf://datasets/org/rows@main/a.parquet:3", "https://host.example/rows.jsonl", "http://127.0.0.1:80/a"])
    expect(shortPath(name)).toBe(name);
});

test("one of something is one, and all else is many", () => {
  for (const [n, text] of [
    [0, "0 rows"],
    [1, "1 row"],
    [1.2, "1.2 rows"],
    [2, "2 rows"],
    [12345, "12,345 rows"],
  ] as const)
    expect(counted(n, "row")).toBe(text);
  expect([counted(2.5, "layer"), counted(1.25, "layer")]).toEqual(["2.5 layers", "1.25 layers"]);
  expect([counted(1, "pass", "passes"), counted(2, "pass", "passes")]).toEqual(["1 pass", "2 passes"]);
  expect(readText({ rows: 1, bytes: 512, totalBytes: 1024 }, 0)).toBe("1 row, 512 B of 1.00 KiB (50 %)");
});

test("seconds that round to a minute are one", () => {
  for (const [seconds, text] of [
    [59.94, "59.9 s"],
    [59.96, "1 min 00 s"],
    [3599.4, "59 min 59 s"],
    [3599.6, "1 h 00 min"],
  ] as const)
    expect(duration(seconds)).toBe(text);
});
