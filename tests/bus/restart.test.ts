// A run over several processes of which any may be killed at any moment: stages and the server are started again by the
// coordinator, the coordinator by whoever started it, and the adapters come out as if nothing had been.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { isAlive, until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

/** Times the steps of the recipe: some dozens between two kills, with a few checkpoints among them. */
const LENGTH = 16;
/** Each of a run's processes; kills.test.ts and scripts/nightly/kills.ts make more. */
const KILLS = ["stage", "coordinator", "server", "stage", "coordinator", "stage"] as const;
const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

needs("nats")("a run whose processes are killed", () => {
  test(`continues after ${KILLS.length} kills at random moments, of any of its processes`, async () => {
    const adapters = [0, 1, 3, 6];
    const text = longer(unlike(adapters, "cpu", "checkpoint = { steps = 4 }\nrestarts = 1000"), LENGTH);
    const all = LENGTH * 21;
    const path = place.project(text, SUMS);
    const rng = new Rng(2024);
    const killed = { coordinator: 0, server: 0, stage: 0 };
    const seen = new Set<number>();
    const start = () => place.start(["run", path, "--stages", "3"]);
    let run = start();
    let code: number | null = null;
    void run.ended.then((ended) => {
      code = ended.code;
    });
    const steps = () => (existsSync(join(outputOf(path), "metrics.jsonl")) ? metrics(outputOf(path), "step").length : 0);
    for (const [i, who] of KILLS.entries()) {
      await until("steps", 120_000, () => steps() > ((i + 0.5) / KILLS.length) * 0.8 * all || code !== null);
      await Bun.sleep(rng.below(100));
      if (code !== null) break; // it came to its end before all kills
      const children = childrenOf(run.pid);
      for (const pid of children) seen.add(pid);
      if (who === "coordinator") {
        run.kill("SIGKILL");
        expect((await run.ended).code).toBe(137);
        killed.coordinator++;
        run = start();
        code = null;
        const current = run;
        void current.ended.then((ended) => {
          if (current === run) code = ended.code;
        });
        continue;
      }
      const find = (): number[] => {
        const command = who === "server" ? "nats-server" : "stage --orders";
        try {
          return childrenOf(run.pid).filter((pid) => commandOf(pid).includes(command));
        } catch {
          return []; // one of them has just ended
        }
      };
      let victims = find();
      // Where it is being started again, on a busy machine for long, the kill waits for it.
      for (const limit = performance.now() + 60_000; victims.length === 0 && code === null && performance.now() < limit; ) {
        await Bun.sleep(20);
        if (code === null) victims = find();
      }
      if (victims.length === 0) continue;
      process.kill(victims[rng.below(victims.length)]!, "SIGKILL");
      killed[who]++;
    }
    const { code: last, err } = await run.ended;
    expect([last, err.match(/^error.*/gm)]).toEqual([0, null]);
    for (const count of Object.values(killed)) expect(count).toBeGreaterThan(0);
    for (const pid of seen) await until("the end of all processes", 60_000, async () => !(await isAlive(pid)));

    const undisturbed = place.project(text, SUMS);
    expect((await place.mlora("run", undisturbed)).code).toBe(0); // on one stage
    for (const i of adapters) expect(leftOf(outputOf(path), `a${i}`)).toEqual(leftOf(outputOf(undisturbed), `a${i}`));
    expect(readdirSync(outputOf(path), { recursive: true }).filter((name) => /\.(tmp|part)($|\/)/.test(`${name}`))).toEqual([]);
  }, 240_000);

  test("is given up after as many restarts as the recipe allows", async () => {
    const path = place.project(longer(unlike([0], "cpu", "restarts = 1"), 100_000), SUMS);
    const run = place.start(["run", path, "--stages", "2"]);
    const stages = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
    const earlier = new Set<number>();
    for (let kills = 0; kills < 2; kills++) {
      await until("two stages", 60_000, () => stages().filter((pid) => !earlier.has(pid)).length === 2);
      for (const pid of stages()) earlier.add(pid);
      process.kill(stages()[0]!, "SIGKILL");
    }
    const { code, err } = await run.ended;
    expect([code, err.match(/^error.*/gm)]).toEqual([1, [expect.stringContaining("error[stage.ended]: stage ")]]);
    expect(err.match(/the stages are started again, 1 of at most 1 times/g)?.length).toBe(1);
  });
});
