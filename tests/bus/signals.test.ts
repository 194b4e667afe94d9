// Ctrl-C and SIGTERM end a run cleanly while it opens its stages and while it trains: with 1, nothing left over, and the same
// command goes on to the same bytes. (While it reads: tests/cpu/reading.test.ts.)

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { isAlive, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const steps = (output: string) => (existsSync(join(output, "metrics.jsonl")) ? metrics(output, "step").length : 0);
const runs = join(place.root, "cache", "runs");
/** Whether a run, which had made `before` steps, has come to its phase. */
const PHASES: Readonly<Record<string, (output: string, before: number) => boolean>> = {
  // known since it opens its stages
  opening: () => existsSync(runs) && readdirSync(runs).some((name) => name.endsWith(".json")),
  training: (output, before) => steps(output) > before + 5,
};

needs("nats")("a run", () => {
  for (const [stages, length] of [
    [1, 100],
    [2, 30],
  ] as const)
    test(`of ${stages} stages is ended by signals in each phase, and resumes as if there had been none`, async () => {
      const text = longer(unlike([0, 1], "cpu", `stages = ${stages}`), length).replaceAll(
        /^eval_every = \d+$/gm,
        "eval_every = 1000",
      );
      const alone = place.project(text, SUMS);
      expect((await place.mlora("run", alone, "--stages", "1")).code).toBe(0);
      const path = place.project(text, SUMS);
      for (const [phase, isThere] of Object.entries(PHASES))
        for (const signal of ["SIGINT", "SIGTERM"] as const) {
          const before = steps(outputOf(path));
          const run = place.start(["run", path]);
          await until(phase, 60_000, () => isThere(outputOf(path), before));
          const children = childrenOf(run.pid);
          run.kill(signal);
          const { code, err } = await run.ended;
          expect([phase, signal, code, err]).toEqual([
            phase,
            signal,
            1,
            expect.stringContaining("error[run.stopped]: stopped before"),
          ]);
          for (const child of children) await until("the end of its children", 60_000, async () => !(await isAlive(child)));
        }
      expect((await place.mlora("run", path)).code).toBe(0);
      for (const name of ["a0", "a1"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(alone), name));
    }, 600_000);
});
