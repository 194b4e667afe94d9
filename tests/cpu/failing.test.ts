// A run that fails at any moment says why and ends with 1: no memory is released under work that is still under way.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { asker } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { metrics, SUMS, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());

/** One adapter is ended, when run.json is to be written; two others train then, and continue. */
const RECIPE = `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
[defaults]
data = { train = "rows.jsonl", eval = "held.jsonl" }
batch_size = 4
[[adapter]]
name = "a"
steps = 100000
[[adapter]]
name = "b"
steps = 100000
[[adapter]]
name = "c"
steps = 100000
`;

test.each([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])(
  "while others train: %i",
  async (seed) => {
    const rng = new Rng(seed);
    const path = place.project(RECIPE, { ...SUMS, "held.jsonl": sums(3) });
    const out = join(path, "..", "out");
    const run = place.start(["run", path]);
    const steps = 1 + rng.below(40);
    await until("steps", 60_000, () => existsSync(join(out, "metrics.jsonl")) && metrics(out, "step").length >= steps);
    mkdirSync(join(out, "run.json")); // it cannot be written any more
    {
      await using asking = await asker(place);
      await asking.ask({ type: "stop", adapter: "a" }).catch(() => undefined); // the run may end before it answers
    }
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([1, expect.stringContaining("error[files.write]")]);
  },
  120_000,
);
