// Paths as messages print them.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { shortPath } from "../../src/base/units.ts";

test("a path is shown from the working folder, and names of what lies elsewhere as they are", () => {
  expect(shortPath(join(process.cwd(), "data", "rows.jsonl"))).toBe(join("data", "rows.jsonl"));
  expect(shortPath(process.cwd())).toBe(".");
  for (const name of ["hf://datasets/org/rows@main/a.parquet:3", "https://host.example/rows.jsonl", "http://127.0.0.1:80/a"])
    expect(shortPath(name)).toBe(name);
});
