// The names of adapters in a trace, where slots are not the indices of adapters.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

test("a trace names the adapters that a slot had at the time: each as often as it made a step", async () => {
  const path = place.project(unlike([0, 1, 3], "cpu", "slots = 1"), SUMS);
  const trace = join(path, "..", "trace.json");
  expect((await place.mlora("run", path, "--trace", trace)).code).toBe(0);
  const all: readonly string[] = metrics(join(path, "..", "out"), "step").map(({ adapter }) => String(adapter));
  const { traceEvents } = JSON.parse(readFileSync(trace, "utf8"));
  const named = (kind: string): string[] =>
    traceEvents
      .filter(({ cat }: { cat: string }) => cat === kind)
      .flatMap(({ args }: { args: { adapters: string[] } }) => args.adapters);
  expect(new Set(all)).toEqual(new Set(["a0", "a1", "a3"]));
  expect(named("step").sort()).toEqual(all.toSorted());
  expect(new Set(named("forward"))).toEqual(new Set(all));
  expect(new Set(named("backward"))).toEqual(new Set(all));
});
