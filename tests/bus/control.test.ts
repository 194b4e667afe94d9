// Runs that are controlled while they train: no request changes a number of the other adapters, or of the one it delays.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { askOnce } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import {
  childrenOf,
  commandOf,
  type Ended,
  leftOf,
  longer,
  metrics,
  type Running,
  SUMS,
  unlike,
  Workplace,
} from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const HERE = { MLORA_CACHE: join(place.root, "cache") }; // runs of other tests are not in the way

const outputOf = (path: string) => join(path, "..", "out");
const mlora = (...args: string[]) => place.start(args, HERE).ended;
const start = (path: string, ...flags: string[]): Running => place.start(["run", path, ...flags], HERE);

/** The answer to a request that must be granted. */
async function told(...args: string[]): Promise<string> {
  const { code, out, err } = await mlora(...args);
  expect([code, err]).toEqual([0, ""]);
  return out.trim();
}

async function refusal(...args: string[]): Promise<string> {
  const { code, out, err } = await mlora(...args);
  expect([code, out]).toEqual([2, ""]);
  return err;
}

const steps = (path: string, adapter?: string) =>
  existsSync(join(outputOf(path), "metrics.jsonl"))
    ? metrics(outputOf(path), "step").filter((line) => adapter === undefined || line["adapter"] === adapter)
    : [];
const begun = (path: string, count = 1, adapter?: string) =>
  until(`${count} steps`, 60_000, () => steps(path, adapter).length >= count);

type Status = {
  readonly run: string;
  readonly state: string;
  readonly adapters: { name: string; state: string; step: number }[];
};
const list = async (): Promise<Status[]> => JSON.parse(await told("ps", "--json"));
/** Of the only run under way; asked from here, not by the command, which takes longer than many steps. */
const statesOf = async () => (await askOnce(place, { type: "status" }).catch(() => null))?.adapters ?? []; // it opens stages
const stateOf = async (adapter: string) => (await statesOf()).find(({ name }) => name === adapter)?.state;
const becomes = (adapter: string, state: string) =>
  until(`${adapter} is ${state}`, 120_000, async () => (await stateOf(adapter)) === state);

/** On one stage, which comes to the same as several do, in a quarter of their time. */
async function undisturbed(text: string): Promise<string> {
  const path = place.project(text, SUMS);
  expect((await mlora("run", path, "--stages", "1")).code).toBe(0);
  return path;
}

const same = (a: string, b: string, adapters: readonly number[]) => {
  for (const i of adapters) expect(leftOf(outputOf(a), `a${i}`), `a${i}`).toEqual(leftOf(outputOf(b), `a${i}`));
};

needs("nats")("a run under way", () => {
  test.each([
    [1, 100],
    [2, 40],
  ])(
    "is listed, and its adapters pause and go on as if nothing had been: %i stages",
    async (stages, length) => {
      const text = longer(unlike([0, 1, 3], "cpu", `stages = ${stages}`), length); // long enough for commands
      const alone = await undisturbed(text);
      const path = place.project(text, SUMS);
      const run = start(path);
      await begun(path, 20);
      const [{ run: id, adapters }] = (await list()) as [Status];
      expect(adapters.map(({ name }) => name)).toEqual(["a0", "a1", "a3"]);
      expect(await told("ps")).toMatch(new RegExp(`^${id} +process ${run.pid}, .*training.*\\n`));

      expect(await told("pause", id.slice(0, 6), "a1")).toContain("a1: paused");
      await becomes("a1", "paused");
      const at = steps(path, "a1").length;
      await begun(path, steps(path, "a0").length + 20, "a0");
      expect(steps(path, "a1").length).toBe(at);
      expect(await refusal("pause", id, "a1")).toContain("'a1' is paused, or has ended");
      expect(await told("resume", id, "a1")).toContain("a1: resumed");
      await begun(path, at + 3, "a1");
      expect(await told("pause", outputOf(path))).toMatch(/paused until resumed/);
      await becomes("a0", "paused");
      expect((await list())[0]!.state).toBe("waiting");
      await told("resume", outputOf(path));
      expect((await run.ended).code).toBe(0);
      same(path, alone, [0, 1, 3]);
      expect(await told("ps")).toBe("no run is under way here");
    },
    600_000,
  );

  test("takes more adapters: where it has room at once, else its stages are opened again; all as in runs of their own", async () => {
    const small = longer(unlike([2], "cpu", "slots = 3"), 200);
    const large = longer(unlike([3, 4], "cpu"), 20);
    const alike = longer(unlike([2], "cpu"), 20).replace('name = "a2"', 'name = "b2"');
    const [first, second, third] = [await undisturbed(small), await undisturbed(large), await undisturbed(alike)];
    const path = place.project(small, { ...SUMS, "more.toml": large, "taken.toml": small });
    const run = start(path);
    await begun(path, 10);
    const id = (await list())[0]!.run;
    writeFileSync(join(path, "..", "alike.toml"), alike);
    expect(await told("add", id, join(path, "..", "alike.toml"))).toBe("b2: added");
    expect(await refusal("add", id, join(path, "..", "taken.toml"))).toContain("has an adapter 'a2' already");
    const asked = [1, 2, 3, 4].map(() => mlora("add", id, join(path, "..", "more.toml")));
    const granted = (await Promise.all(asked)).filter(({ code }) => code === 0);
    expect(granted.map(({ out }) => out)).toEqual([
      expect.stringMatching(/^a3, a4: added; the stages are opened again, with room for rank 16/),
    ]);
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([0, expect.stringContaining("the stages are opened again")]);
    same(path, first, [2]);
    same(path, second, [3, 4]);
    expect(leftOf(outputOf(path), "b2")).toEqual(leftOf(outputOf(third), "b2"));
  }, 600_000);

  test("gives its only slot to one of a higher priority at its next iteration, and then back", async () => {
    const low = longer(unlike([5], "cpu", "slots = 1"), 150);
    const high = longer(unlike([1], "cpu"), 20).replace('name = "a1"', 'name = "a1"\npriority = 5');
    const [first, second] = [await undisturbed(low), await undisturbed(high)];
    const path = place.project(low, { ...SUMS, "high.toml": high });
    const run = start(path);
    await begun(path, 10);
    await told("add", outputOf(path), join(path, "..", "high.toml"));
    const at = steps(path, "a5").length;
    expect((await run.ended).code).toBe(0);
    const order = steps(path).map(({ adapter }) => adapter);
    const from = order.indexOf("a1");
    expect(order.slice(0, from).length).toBeLessThanOrEqual(at + 1);
    expect(new Set(order.slice(from, from + 80))).toEqual(new Set(["a1"]));
    same(path, first, [5]);
    same(path, second, [1]);
  }, 600_000);

  test("continues with a copy of an adapter: the same one without changes, another with them; after a kill as well", async () => {
    const text = longer(unlike([0, 1], "cpu", "checkpoint = { steps = 5 }"), 80);
    const alone = await undisturbed(text);
    const path = place.project(text, SUMS);
    const run = start(path);
    await begun(path, 15, "a0");
    expect(await told("fork", outputOf(path), "a0", "twin")).toMatch(/^twin: continues from a0, after step \d+$/);
    expect(await told("fork", outputOf(path), "a0", "bold", "--set", "learning_rate = 1e-2, dropout = 0")).toContain("bold");
    await begun(path, 10, "bold");
    run.kill("SIGKILL");
    await run.ended;
    expect((await mlora("run", path)).code).toBe(0);
    same(path, alone, [0, 1]);
    const lines = (name: string) => leftOf(outputOf(path), name).steps.map(({ adapter: _, ...line }) => line);
    const [first] = lines("twin") as unknown as [{ step: number }];
    expect(first.step).toBeGreaterThan(15);
    expect(lines("twin")).toEqual(lines("a0").slice(first.step - 1));
    expect(leftOf(outputOf(path), "twin").weights).toBe(leftOf(outputOf(path), "a0").weights);
    expect(lines("bold").map(({ loss }) => loss)).not.toEqual(
      lines("a0")
        .slice(-lines("bold").length)
        .map(({ loss }) => loss),
    );
  }, 600_000);

  test("ends one adapter when told so, saved; is kept open for more; and ends when told so", async () => {
    const text = longer(unlike([0, 1], "cpu"), 150);
    const path = place.project(text, { ...SUMS, "more.toml": unlike([4], "cpu") });
    const alone = await undisturbed(unlike([4], "cpu"));
    const run = start(path, "--keep-open");
    await begun(path, 10);
    expect(await told("stop", outputOf(path), "a0")).toMatch(/^a0 ends after step \d+, and is saved$/);
    await becomes("a1", "done");
    expect(await stateOf("a0")).toBe("stopped");
    expect(existsSync(join(outputOf(path), "a0", "adapter_model.safetensors"))).toBe(true);
    expect(await refusal("fork", outputOf(path), "a1", "late")).toContain("'a1' has ended");
    await told("add", outputOf(path), join(path, "..", "more.toml"));
    await becomes("a4", "done");
    expect(await told("stop", outputOf(path))).toContain("the run ends");
    expect((await run.ended).code).toBe(0);
    same(path, alone, [4]);
  }, 600_000);

  test("leaves alone the adapters that it was asked to stop or to pause, also when a stage dies afterwards", async () => {
    const text = longer(unlike([0, 1, 2], "cpu", "stages = 2"), 40);
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
    same(path, await undisturbed(text), [1, 2]);
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
    const text = longer(unlike([0, 1, 2], "cpu", "stages = 2\nslots = 3\ncheckpoint = { steps = 20 }"), 30);
    const late = [3, 4, 5].map((i) => longer(unlike([i], "cpu"), 20));
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
    /** While stages are opened again there is no answer. */
    const insist = async (...args: string[]): Promise<boolean> => {
      for (let i = 0; i < 50; i++) {
        const { code, err } = await mlora(...args);
        if (code === 0 || !/no run is under way here|being opened|refused|not answer/.test(err)) return code === 0;
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

  test("refuses what cannot be, to its sender alone", async () => {
    const text = longer(unlike([0], "cpu"), 5000);
    const path = place.project(text, {
      ...SUMS,
      "bad.toml": text.replace("a0", "b0").replace("rows.jsonl", "none.jsonl"),
      "cut.toml": text.replace("a0", "b0").replace("microbatch = 60", "microbatch = 61"),
    });
    const run = start(path);
    await begun(path, 3);
    const out = outputOf(path);
    expect(await refusal("stop", "nonesuch")).toContain("there is no run 'nonesuch'; these runs are under way here:");
    expect(await refusal("stop", out, "a7")).toMatch(/the run has no adapter 'a7'\nhint: did you mean 'a0'\?/);
    expect(await refusal("fork", out, "a0", "c", "--set", "rank = 4")).toContain("cannot have another rank");
    expect(await refusal("fork", out, "a0", "c", "--set", "steps = 1")).toContain("'c' would end after 1");
    expect(await refusal("fork", out, "a0", "c", "--set", "dropout = 7")).toContain("adapter[0].dropout");
    expect(await refusal("fork", out, "a0", "../c")).toContain("names a folder");
    expect(await refusal("fork", out, "a0", "A0")).toContain("has an adapter 'A0' already");
    expect(await refusal("fork", out, "a0", "c", "--set", "steps")).toContain("--set steps:");
    expect(await refusal("add", out, join(path, "..", "bad.toml"))).toContain("none.jsonl");
    writeFileSync(join(path, "..", "other.toml"), text.replace("../model", "../another").replace("a0", "b0"));
    expect(await refusal("add", out, join(path, "..", "other.toml"))).toContain("another, the run trains on");
    expect(await refusal("add", out, join(path, "..", "cut.toml"))).toContain("61 tokens a micro-batch, the run auto and 60");
    run.kill("SIGINT");
    expect((await run.ended).code).toBe(1);
  }, 600_000);

  test("is known to its user alone, by a file that goes with it; that of a killed run is taken away", async () => {
    const path = place.project(longer(unlike([0], "cpu"), 5000), SUMS);
    const run = start(path);
    await begun(path, 1);
    const folder = join(HERE.MLORA_CACHE, "runs");
    const [file] = readdirSync(folder);
    const { reach } = JSON.parse(readFileSync(join(folder, file!), "utf8"));
    expect(statSync(join(folder, file!)).mode & 0o777).toBe(0o600);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    const listed = await told("ps", "--json");
    for (const secret of [reach.address.login.token, reach.key]) expect(listed).not.toContain(secret);
    run.kill("SIGKILL");
    await run.ended;
    expect(await told("ps")).toBe("no run is under way here");
    expect(readdirSync(folder)).toEqual([]);
  }, 600_000);
});
