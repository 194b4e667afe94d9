// Runs of so few rows that no step has together what is put together elsewhere: the rows that an adapter's numbers are tried on
// before it is saved, and those that a reference is measured on.

import { afterAll, expect, test } from "bun:test";
import { Workplace } from "../helpers/program.ts";

const place = new Workplace(1);
afterAll(() => place[Symbol.dispose]());

const lines = (rows: readonly object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
const recipe = (keys: string) =>
  `[model]\npath = "${place.model}"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "a"\ndata = "rows.jsonl"\n${keys}`;

// Four of the five rows are in the first step: the short one among them, but for one seed in five.
test.each([1, 2, 3])("an adapter is saved whose steps are smaller than its first rows together (seed %d)", async (seed) => {
  const rows = [40, 40, 40, 40, 1].map((length) => ({ prompt: "p", completion: "c".repeat(length) }));
  const path = place.project(recipe(`batch_size = 4\nsteps = 2\nseed = ${seed}\n`), { "rows.jsonl": lines(rows) });
  const { code, out, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  expect(out).toMatch(/a +done +2 /);
});

test("a reference is measured on rows that are put together otherwise than in steps", async () => {
  // In steps of three: 2 + 2 + 2 and 3 + 3. All five, alike in tokens: 3 + 2 + 2 and 3 + 2.
  const rows = [40, 40, 40, 60, 60].map((length) => ({ prompt: "p".repeat(length), chosen: "c", rejected: "r" }));
  const keys = 'objective = "dpo"\nbatch_size = 3\nsteps = 2\nshuffle = false\n';
  const { code, err } = await place.mlora("run", place.project(recipe(keys), { "rows.jsonl": lines(rows) }));
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
});
