// Every event of real runs is what the schema says, survives JSON, and says all that a listener has to know.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { lateAdapters } from "../../src/plan/late-adapters.ts";
import { makePlan } from "../../src/plan/plan.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import { EventStream } from "../../src/session/events/event-stream.ts";
import { resultOf, type SessionEvent, sessionEventSchema } from "../../src/session/events/events.ts";
import { Training } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-events-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const golden = loadGolden("llama");
const spec = readModelSpec(golden.model);
const { rows, recipe } = golden.adapters[0]!;
const data = { train: rows, eval: rows.slice(0, 3) };
const lengths = (of: typeof rows) =>
  of.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: row.mask.reduce((a, b) => a + b, 0) }));
const summary = { train: lengths(data.train), eval: lengths(data.eval) };
const named = (name: string, changes: Partial<AdapterRecipe> = {}): AdapterRecipe => ({
  ...{ ...recipe, ...changes, name, evalEvery: 1 },
});

/** Two adapters, the second of which learns until its numbers are NaN, and one that joins. */
async function trained(emit: EventStream["emit"]) {
  const optimizer = { ...recipe.optimizer, learningRate: 1e30, maxGradNorm: null };
  const schedule = { ...recipe.schedule, warmup: 0 };
  const adapters = [named("good"), named("bad", { optimizer, schedule })];
  const device = { ...chooseDevice("cpu", "fp32"), host: "" };
  const wide = { ...goldenRecipe(golden, []), adapters };
  const plan = makePlan(wide, spec, [summary, summary], [device]);
  await using bus = await openLocalStages(setupsOf(plan, { folder: golden.model }));
  let joined = false;
  const training: Training = new Training({
    ...{ plan, data: [data, data], bus, output: join(root, "out"), stop: new AbortController().signal },
    emit: (event) => {
      if (event.type === "step" && !joined) {
        joined = true;
        training.controls.add(lateAdapters(plan, [named("late")], [summary]), [data]);
      }
      emit(event);
    },
  });
  return await training.run();
}

test("events of a run are plain data in the schema's form, and a reader gets all of them", async () => {
  const emitted: SessionEvent[] = [];
  const stream = new EventStream([(event) => void emitted.push(event)]);
  const events = stream.events();
  const result = await trained(stream.emit);
  stream.close();
  const read: SessionEvent[] = [];
  for await (const event of events) read.push(event);
  expect(read).toEqual(emitted);
  for (const event of emitted) {
    const line = JSON.parse(JSON.stringify(event));
    expect(line).toStrictEqual(event);
    expect(v.parse(sessionEventSchema, line)).toStrictEqual(event);
  }
  const types = new Set(emitted.map(({ type }) => type));
  expect(types).toEqual(new Set(["step", "evaluation", "saved", "failed", "ended", "joined"]));

  const about = (name: string) => emitted.filter((event) => "adapter" in event && event.adapter === name);
  for (const [index, { name, status, steps }] of result.adapters.entries()) {
    const own = about(name);
    for (const event of own) expect(event).toMatchObject({ adapter: name, index });
    expect(own.flatMap((event) => (event.type === "step" ? event.step : []))).toEqual(
      Array.from({ length: steps }, (_, i) => i + 1),
    );
    const last = own.at(-1)!;
    expect(last.type === "ended" && resultOf(last)).toEqual(result.adapters[index]!);
    expect(status).toBe(name === "bad" ? "failed" : "done");
  }
  expect(about("late")[0]).toEqual({
    ...{ type: "joined", adapter: "late", index: 2 },
    ...{ steps: result.adapters[2]!.steps, tokens: result.adapters[2]!.tokens },
  });
  // A loss that is not finite is null, in the table of results NaN again.
  const losses = about("bad").flatMap((event) => (event.type === "evaluation" ? [event.loss] : []));
  expect(losses[0]).toBeGreaterThan(0);
  expect(losses).toContain(null);
});
