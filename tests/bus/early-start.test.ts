// A run of several stages that begins before all its rows are read.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import { openSession } from "../../src/session/session.ts";
import { isEarly, manyRows } from "../helpers/early.ts";
import { inTheMiddle } from "../helpers/middle.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
const cache = join(place.root, "cache");
const before = process.env["MLORA_CACHE"];
beforeAll(() => {
  process.env["MLORA_CACHE"] = cache;
});
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  place[Symbol.dispose]();
});

const text = (steps: number) => `[model]
path = "../model"
[run]
output = "out"
device = "cpu"
restarts = 1
[defaults]
data = { train = "rows.jsonl", split = 0.002 }
max_length = 60
steps = ${steps}
[[adapter]]
name = "a"
rank = 3
dropout = 0.1
[[adapter]]
name = "b"
batch_size = 2
accumulation = 2
`;
const outputOf = (path: string) => join(path, "..", "out");

needs("nats")("a run of several stages", () => {
  test("that loses one while rows are read begins anew when they are, and comes to the bytes of one stage", async () => {
    const { path, steps, rows, events } = await inTheMiddle(async (factor) => {
      rmSync(cache, { recursive: true, force: true });
      const [steps, rows] = [200 * factor, manyRows(5_000 * factor).join("")];
      const path = place.project(text(steps), { "rows.jsonl": rows });
      const events: SessionEvent[] = [];
      let killed = false;
      const onEvent = (event: SessionEvent) => {
        events.push(event);
        if (event.type !== "step" || killed) return;
        killed = true;
        const stage = childrenOf(process.pid).find((pid) => commandOf(pid).includes("stage --orders"));
        process.kill(stage!, "SIGKILL");
      };
      const session = await openSession(loadRecipe(path, { stages: 2 }), {
        isReachable: false,
        early: { patienceMs: 0 },
        onEvent,
      });
      await session.done;
      return isEarly(events) ? { path, steps, rows, events } : null;
    });
    expect(events.filter(({ type }) => type === "reopening")).toHaveLength(1);
    const alone = place.project(text(steps), { "rows.jsonl": rows });
    await (await openSession(loadRecipe(alone), { isReachable: false })).done;
    for (const name of ["a", "b"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(alone), name));
  });
});
