// Runs that are controlled while they train, and whose processes are killed: what was asked for holds afterwards.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { askOnce } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { controls } from "../helpers/control.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, type Ended, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const { outputOf, mlora, start, told, steps, begun, list, statesOf, stateOf, becomes, undisturbed, same } = controls(place);

needs("nats")("a run under way", () => {
  test("leaves alone the adapters that it was asked to stop or to pause, also when a stage dies afterwards", async () => {
    const recipe = (adapters: readonly number[]) => longer(unlike(adapters, "cpu", "stages = 2"), 40);
    const text = recipe([0, 1, 2]).replace(/^steps = \d+$/m, "steps = 1000000"); // a0's, until it is stopped
    const path = place.project(text, SUMS);
    const run = start(path);
    await begun(path, 10, "a0");
    await told("stop", outputOf(path), "a0");
    await becomes("a0", "stopped");
    await told("pause", outputOf(path), "a2");
    await becomes("a2", "paused");
    const paused = steps(path, "a2").length;
    const made = leftOf(outputOf(path), "a0");
    const [stage] = childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage"));
    process.kill(stage!, "SIGKILL");
    await becomes("a1", "done");
    expect(await stateOf("a2")).toBe("paused");
    expect(steps(path, "a2").length).toBe(paused);
    await told("resume", outputOf(path), "a2");
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([0, expect.stringContaining("the stages are started again")]);
    expect(err).toContain("a0 is stopped");
    expect(leftOf(outputOf(path), "a0")).toEqual(made);
    same(path, await undisturbed(recipe([1, 2])), [1, 2]);
  }, 600_000);

  test("is known while its stages are opened again, and a paused adapter keeps its step", async () => {
    const path = place.project(
      longer(unlike([0, 1], "cpu", "stages = 2\nrestarts = 9\ncheckpoint = { steps = 5 }"), 400),
      SUMS,
    );
    const run = start(path);
    await begun(path, 12, "a1");
    await told("pause", outputOf(path), "a1");
    await becomes("a1", "paused");
    const before = (await list())[0]!.adapters.find(({ name }) => name === "a1")!.step;
    const stages = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage"));
    const old = stages();
    process.kill(old[0]!, "SIGKILL");
    for (let i = 0; ; i++) {
      const [only, ...others] = await list();
      expect([only?.run, others.length]).toEqual([expect.any(String), 0]); // never unknown, though it may be opening its stages
      const a1 = only!.adapters.find(({ name }) => name === "a1");
      if (a1?.state === "paused" && !stages().includes(old[1]!)) {
        expect(a1.step).toBe(before);
        break;
      }
      expect(i, JSON.stringify(only)).toBeLessThan(300);
    }
    run.kill("SIGINT");
    await run.ended;
  }, 600_000);

  test("keeps the paused adapters when its coordinator is killed and the same command is given again", async () => {
    const text = longer(unlike([0, 2], "cpu", "checkpoint = { steps = 5 }"), 60);
    const path = place.project(text, SUMS);
    const first = start(path);
    await begun(path, 12, "a2");
    await told("pause", outputOf(path), "a2");
    await becomes("a2", "paused");
    first.kill("SIGKILL");
    await first.ended;
    const again = start(path);
    await becomes("a0", "done");
    expect(await stateOf("a2")).toBe("paused");
    await told("resume", outputOf(path), "a2");
    const { code, err } = await again.ended;
    expect([code, err]).toEqual([0, expect.stringMatching(/notice: a2 stays paused, as before: mlora resume \S+ resumes it/)]);
    same(path, await undisturbed(text), [0, 2]);
  }, 600_000);

  test("waits on for more adapters when a stage dies while there is nothing to do", async () => {
    const text = unlike([0], "cpu", "stages = 2");
    const late = unlike([4], "cpu");
    const alone = await undisturbed(late);
    const path = place.project(text, { ...SUMS, "late.toml": late });
    const run = start(path, "--keep-open");
    await becomes("a0", "done");
    const stages = () => childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage"));
    const before = stages();
    process.kill(before[0]!, "SIGKILL");
    await until("other stages", 60_000, () => stages().length === 2 && stages().every((pid) => !before.includes(pid)));
    await becomes("a0", "done");
    await told("add", outputOf(path), join(path, "..", "late.toml"));
    await becomes("a4", "done");
    await told("stop", outputOf(path));
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([0, expect.stringContaining("the stages are started again")]);
    same(path, alone, [4]);

    // Nothing is left to do, and again it waits: whoever keeps a run open may start it again.
    const again = start(path, "--keep-open");
    await becomes("a0", "done");
    await told("stop", outputOf(path));
    expect((await again.ended).code).toBe(0);
  }, 600_000);

  test("comes to the same whatever it is asked at random moments, a stage killed among it", async () => {
    const rng = new Rng(41);
    const text = longer(unlike([0, 1, 2], "cpu", "stages = 2\nslots = 3\ncheckpoint = { steps = 12 }"), 18);
    const late = [3, 4, 5].map((i) => longer(unlike([i], "cpu"), 12));
    const alone = [await undisturbed(text), ...(await Promise.all(late.map(undisturbed)))];
    const path = place.project(text, { ...SUMS, ...Object.fromEntries(late.map((of, i) => [`late-${i}.toml`, of])) });
    const run = start(path, "--keep-open"); // until all requests are made, however fast it trains
    await begun(path, 20);
    const out = outputOf(path);
    const [names, twins] = [["a0", "a1", "a2"], [] as string[]];
    let ended: Ended | null = null;
    void run.ended.then((how) => {
      ended = how;
    });
    /** While its server is gone there may be no answer. */
    const insist = async (...args: string[]): Promise<boolean> => {
      for (let i = 0; i < 50; i++) {
        const { code, err } = await mlora(...args);
        if (code === 0 || !/no run is under way here|refused|not answer/.test(err)) return code === 0;
        expect(ended, args.join(" ")).toBeNull();
        await Bun.sleep(100);
      }
      throw new Error(`${args.join(" ")}: no answer`);
    };
    const add = async (i: number) => {
      if (await insist("add", out, join(path, "..", `late-${i}.toml`))) names.push(`a${3 + i}`);
    };
    const fork = async (i: number) => {
      const from = names[rng.below(names.length)]!;
      if (await insist("fork", out, from, `twin-${i}`)) twins.push(`twin-${i}`);
    };
    const kill = async () => {
      const [stage] = childrenOf(run.pid).filter((pid) => commandOf(pid).includes("stage"));
      if (stage) process.kill(stage, "SIGKILL");
    };
    const anybody = () => (rng.below(3) === 0 ? [] : [names[rng.below(names.length)]!]);
    const pause = () => mlora("pause", out, ...anybody());
    const resume = () => mlora("resume", out, ...anybody());
    const acts = [0, 1, 2].map((i) => () => add(i) as Promise<unknown>);
    acts.push(
      () => fork(0),
      () => fork(1),
      pause,
      pause,
      pause,
      resume,
      resume,
      kill,
    );
    for (const act of rng.shuffle(acts)) {
      await act();
      await Bun.sleep(rng.below(150));
    }
    await until("the end of all", 240_000, async () => {
      await askOnce(place, { type: "resume", adapter: null }).catch(() => undefined); // none is paused, or it opens stages
      const states = await statesOf();
      return ended !== null || (states.length > 0 && states.every(({ state }) => state === "done"));
    });
    await told("stop", out);
    const { code, err } = await run.ended;
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    expect(names.length).toBe(6);
    same(path, alone[0]!, [0, 1, 2]);
    for (const i of [0, 1, 2]) same(path, alone[1 + i]!, [3 + i]);
    const record = JSON.parse(readFileSync(join(out, "run.json"), "utf8")).adapters;
    for (const twin of twins) expect(record[twin]?.status ?? "never made").toBe("done");
  }, 600_000);
});
