// A run over several processes of which any may be killed at any moment: stages and the server are started again by the
// coordinator, the coordinator by whoever started it, and the adapters come out as if nothing had been.

import { afterAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { isAlive } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const KILLS = 12; // scripts/nightly/kills.ts makes more
const place = new Workplace(4);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

needs("nats")("a run whose processes are killed", () => {
  test(`continues after ${KILLS} kills at random moments, of any of its processes`, async () => {
    const adapters = [0, 1, 3, 6];
    const text = longer(unlike(adapters, "cpu", "checkpoint = { steps = 4 }\nrestarts = 1000"), 150);
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
    for (let kills = 0; kills < KILLS; kills++) {
      await Bun.sleep(200 + rng.below(1400));
      if (code !== null) break; // it came to its end before all kills
      const children = childrenOf(run.pid);
      for (const pid of children) seen.add(pid);
      const who = (["stage", "stage", "server", "coordinator"] as const)[rng.below(4)]!;
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
      for (const limit = performance.now() + 20_000; victims.length === 0 && code === null && performance.now() < limit; ) {
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
    for (const pid of seen) expect(await isAlive(pid)).toBe(false);

    const undisturbed = place.project(text, SUMS);
    expect((await place.mlora("run", undisturbed)).code).toBe(0);
    for (const i of adapters) expect(leftOf(outputOf(path), `a${i}`)).toEqual(leftOf(outputOf(undisturbed), `a${i}`));
    expect(readdirSync(outputOf(path), { recursive: true }).filter((name) => /\.(tmp|part)($|\/)/.test(`${name}`))).toEqual([]);
  }, 240_000);

  test("is given up after as many restarts as the recipe allows", async () => {
    const path = place.project(longer(unlike([0], "cpu", "restarts = 1"), 100_000), SUMS);
    const run = place.start(["run", path, "--stages", "2"]);
    for (let kills = 0; kills < 2; kills++) {
      const stages = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage --orders"));
      while (stages().length < 2) await Bun.sleep(20);
      await Bun.sleep(500);
      process.kill(stages()[0]!, "SIGKILL");
      await Bun.sleep(200);
    }
    const { code, err } = await run.ended;
    expect([code, err.match(/^error.*/gm)]).toEqual([1, [expect.stringContaining("error[stage.ended]: stage ")]]);
    expect(err.match(/the stages are started again, 1 of at most 1 times/g)?.length).toBe(1);
  });
});
