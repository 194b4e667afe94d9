// Whole runs over several processes and a real nats-server: the same bytes as one process, whatever the stages and what is
// co-batched.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { startServer } from "../../src/cluster/server.ts";
import { isAlive, until } from "../helpers/bus.ts";
import { beforeItsEnd, inTheMiddle } from "../helpers/middle.ts";
import { needs } from "../helpers/needs.ts";
import {
  childrenOf,
  commandOf,
  type Left,
  leftOf,
  longer,
  metrics,
  PROGRAM,
  type Running,
  SUMS,
  unlike,
  Workplace,
} from "../helpers/program.ts";

const LAYERS = 5;
const recipe = (adapters: readonly number[]) => unlike(adapters, "cpu", "restarts = 0");
/** Makes a run last until it is ended. */
const forever = (text: string) => text.replaceAll(/^steps = .*$/gm, "steps = 1000000");

const place = new Workplace(LAYERS);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");

const alone = new Map<string, Left>();
/** What becomes of an adapter in a run of its own, in one process. */
async function trainedAlone(adapter: number) {
  const name = `a${adapter}`;
  if (!alone.has(name)) {
    const path = place.project(recipe([adapter]), SUMS);
    expect((await place.mlora("run", path)).code).toBe(0);
    alone.set(name, leftOf(outputOf(path), name));
  }
  return alone.get(name)!;
}

async function expectAsAlone(path: string, adapters: readonly number[]): Promise<void> {
  for (const i of adapters) expect(leftOf(outputOf(path), `a${i}`)).toEqual(await trainedAlone(i));
}

/** Whether that many adapters have stepped. */
const stepped = (path: string, adapters: number): boolean =>
  existsSync(join(outputOf(path), "metrics.jsonl")) &&
  new Set(metrics(outputOf(path), "step").map(({ adapter }) => adapter)).size === adapters;

/** Once every adapter has stepped: the run's server and its stages, first stage first. */
async function underWay(running: Running, path: string, adapters: number) {
  await until("all adapters step", 60_000, () => stepped(path, adapters));
  const children = childrenOf(running.pid);
  const stages = children.filter((pid) => commandOf(pid).includes("stage --orders"));
  return { children, stages, server: children.find((pid) => commandOf(pid).includes("nats-server"))! };
}

const temporary = (): string[] => readdirSync(place.temporary).filter((name) => name.startsWith("mlora-nats-"));

needs("nats")("a run over several processes", () => {
  test.each([
    [1, [0, 1, 2]],
    [2, [0]],
    [2, [3, 1, 2]],
    [2, range(8)],
    [3, [4]],
    [3, range(8)],
    [4, [2, 5, 7]],
    [4, range(8)],
    ["1,3,1", [6, 0, 3]],
  ] as const)("%p stages, adapters %p: losses, evaluations and weights as alone, bit for bit", async (stages, adapters) => {
    const path = place.project(recipe(adapters), SUMS);
    const { code, err } = await place.mlora("run", path, "--stages", `${stages}`);
    expect([code, err.match(/^(error|warning).*/m)]).toEqual([0, null]);
    await expectAsAlone(path, adapters);
  });

  test.each(["nats", "shm"])("activations by the link '%s': the same", async (link) => {
    const path = place.project(recipe([0, 5, 3]), SUMS);
    const { code, err } = await place.mlora("run", path, "--stages", "3", "--link", link);
    expect(code).toBe(0);
    expect(err.match(new RegExp(`; to stage [12] by ${link}: `, "g"))?.length).toBe(2);
    await expectAsAlone(path, [0, 5, 3]);
  });

  test("stages that join on the user's own server, one of them started by the run, one with the model elsewhere", async () => {
    await using server = await startServer();
    const token = (server.address.login as { token: string }).token;
    const secret = { MLORA_NATS_TOKEN: token, MLORA_RUN_KEY: "k".repeat(40) };
    const url = server.address.servers[0]!;
    const path = place.project(recipe([0, 1, 4]), SUMS);
    const run = place.start(["run", path, "--nats", url, "--run", "mine", "--stages", "3", "--here", "1"], secret);
    const join = ["stage", "--nats", url, "--run", "mine", "--device", "cpu"];
    const stages = [[], ["--model", place.model]].map((more) => place.start([...join, ...more], secret));
    const { code, err } = await run.ended;
    expect([code, err.match(/^error.*/m)]).toEqual([0, null]);
    for (const stage of stages) expect((await stage.ended).code).toBe(0);
    await expectAsAlone(path, [0, 1, 4]);
  });

  test("a server that is away for two seconds is waited for, and nothing changes", async () => {
    const { path, text } = await inTheMiddle(async (factor) => {
      const first = await startServer();
      const { login, servers } = first.address;
      const token = (login as { token: string }).token;
      const text = longer(recipe([0, 3]).replaceAll(/^eval_every = .*$/gm, ""), 12 * factor);
      const path = place.project(text, SUMS);
      const run = place.start(["run", path, "--nats", servers[0]!, "--stages", "2", "--here", "2"], {
        MLORA_NATS_TOKEN: token,
      });
      await beforeItsEnd(run, "steps", () => stepped(path, 2));
      await first[Symbol.asyncDispose]();
      await Bun.sleep(1_500);
      const isAway = stepped(path, 2) && metrics(outputOf(path), "step").length < 132 * factor;
      await using _ = await startServer({ port: Number(new URL(servers[0]!).port), token });
      const { code, err } = await run.ended;
      if (!isAway) return null; // it had made its last step
      expect([code, err.match(/^error.*/m)]).toEqual([0, null]);
      return { path, text };
    });
    const undisturbed = place.project(text, SUMS);
    await place.mlora("run", undisturbed);
    for (const name of ["a0", "a3"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(undisturbed), name));
  });

  test.each([
    ["stage", "SIGKILL", /^error\[stage\.ended\]: stage 1 \(process \d+\) was killed by SIGKILL$/m],
    ["stage", "SIGSTOP", /^error\[bus\.gone\]: stage 1 \(.*, process \d+\) has not been heard of for 4 s$/m],
    ["server", "SIGKILL", /^error\[nats\.ended\]: nats-server \(process \d+\) was killed by SIGKILL$/m],
    ["server", "SIGSTOP", /^error\[nats\.silent\]: the NATS server at 127.0.0.1:\d+ has not answered for 4 s$/m],
  ] as const)(
    "a %s that gets %s ends the run with one error that names it, within seconds, and nothing is left",
    async (who, signal, message) => {
      const before = temporary();
      const path = place.project(forever(recipe([0, 1, 2])), SUMS);
      const run = place.start(["run", path, "--stages", "3"]);
      const { children, stages, server } = await underWay(run, path, 3);
      const victim = who === "stage" ? stages[1]! : server;
      const begin = performance.now();
      process.kill(victim, signal);
      const { code, err } = await run.ended;
      expect(performance.now() - begin).toBeLessThan(30_000); // noticed within 5 s, and then ended, next to a busy neighbour
      expect(code).toBe(1);
      expect(err).toMatch(message);
      expect(err.match(/error\[/g)?.length).toBe(1);
      for (const pid of children) expect(await isAlive(pid)).toBe(false);
      expect(temporary()).toEqual(before);
      expect(readdirSync(outputOf(path)).sort()).toEqual([".mlora-run.json", "metrics.jsonl", "recipe.toml", "tb"]);
    },
  );

  test.each(["SIGKILL", "SIGSTOP"] as const)("stages end themselves when the coordinator gets %s", async (signal) => {
    const path = place.project(forever(recipe([0, 1])), SUMS);
    const run = place.start(["run", path, "--stages", "2"]);
    const { children, stages } = await underWay(run, path, 2);
    process.kill(run.pid, signal);
    await until("the stages end", 60_000, async () => (await Promise.all(stages.map(isAlive))).every((alive) => !alive));
    if (signal === "SIGSTOP") process.kill(run.pid, "SIGCONT");
    await run.ended;
    for (const pid of children) await until("its children end", 60_000, async () => !(await isAlive(pid)));
  });

  test.each([
    ["Ctrl-C", "SIGINT"],
    ["the loss of its terminal", "SIGHUP"],
  ] as const)("%s finishes what was begun, saves every adapter, and leaves no process", async (_, signal) => {
    const path = place.project(forever(recipe([0, 1, 2])), SUMS);
    const run = place.start(["run", path, "--stages", "3"]);
    const { children } = await underWay(run, path, 3);
    run.kill(signal);
    const { code, out, err } = await run.ended;
    expect([code, err.match(/^error.*/gm)]).toEqual([1, [expect.stringContaining("stopped before the end")]]);
    for (const i of range(3)) {
      expect(out).toMatch(new RegExp(`^a${i} +stopped`, "m"));
      expect(existsSync(join(outputOf(path), `a${i}`, "adapter_model.safetensors"))).toBe(true);
    }
    for (const pid of children) expect(await isAlive(pid)).toBe(false);
  });

  test("under nohup the loss of its terminal is nothing to it", async () => {
    const path = place.project(forever(recipe([0])), SUMS);
    const ignoring = `trap "" HUP; exec "$0" "$@"`;
    const command = ["sh", "-c", ignoring, ...PROGRAM, "run", path];
    const env = { ...process.env, TMPDIR: place.temporary, MLORA_CACHE: join(place.root, "cache") };
    const child = Bun.spawn(command, { stdout: "ignore", stderr: "pipe", env });
    const steps = () => metrics(outputOf(path), "step").length;
    const made = () => existsSync(join(outputOf(path), "metrics.jsonl"));
    await until("the first steps", 60_000, () => made() && steps() > 2);
    child.kill("SIGHUP");
    const before = steps();
    await until("more steps", 60_000, () => steps() > before + 5);
    child.kill("SIGINT");
    expect([await child.exited, await child.stderr.text()]).toEqual([1, expect.stringContaining("stopped before the end")]);
  });

  test("the server's token is in no argument and no environment of any process of the run", async () => {
    const path = place.project(forever(recipe([0, 1])), SUMS);
    const run = place.start(["run", path, "--stages", "2"], { MLORA_DEBUG: "2" });
    const { children } = await underWay(run, path, 2);
    const said = [run.pid, ...children].map((pid) => commandOf(pid) + readFileSync(`/proc/${pid}/environ`, "utf8"));
    run.kill("SIGTERM");
    const { out, err } = await run.ended;
    expect(err).toMatch(/^stage 1: backward, answered after \d+\.\d ms$/m);
    const tokens = [...said, out, err].flatMap((text) => text.match(/\b[a-z2-9]{32}\b/g) ?? []); // as base/secret.ts makes them
    expect(tokens).toEqual([]);
    for (const file of readdirSync(outputOf(path), { recursive: true, withFileTypes: true }))
      if (file.isFile()) expect(readFileSync(join(file.parentPath, file.name), "latin1")).not.toMatch(/\b[a-z2-9]{32}\b/);
  });

  test("a trace has what every stage did, on one axis: forwards pass down, backwards up, and a stage does one thing at a time", async () => {
    const path = place.project(recipe([0, 1, 3]), SUMS);
    const trace = join(path, "..", "trace.json");
    expect((await place.mlora("run", path, "--stages", "3", "--trace", trace)).code).toBe(0);
    type Event = { ph: string; pid: number; tid: number; name: string; cat: string; ts: number; dur: number };
    const events: Event[] = JSON.parse(readFileSync(trace, "utf8")).traceEvents;
    const spans = events.filter(({ ph, cat }) => ph === "X" && (cat === "forward" || cat === "backward"));
    const of = (stage: number) => spans.filter(({ pid }) => pid === stage + 1).sort((a, b) => a.ts - b.ts);
    expect(new Set(spans.map(({ pid }) => pid))).toEqual(new Set([1, 2, 3]));
    for (const stage of range(3))
      for (const [i, { ts }] of of(stage).entries())
        if (i > 0) expect(ts).toBeGreaterThanOrEqual(of(stage)[i - 1]!.ts + of(stage)[i - 1]!.dur);
    const at = (stage: number, name: string) => of(stage).find((span) => span.name === name)!;
    const slack = 500; // microseconds: how well clocks of two processes are compared
    for (const { name, cat } of of(0)) {
      const [from, to] = cat === "forward" ? [0, 1] : [1, 0];
      expect(at(to, name).ts + slack).toBeGreaterThan(at(from, name).ts + at(from, name).dur);
    }
    expect(events.some(({ cat }) => cat === "linear")).toBe(true);
  });

  test("bad requests are refused before anything is begun", async () => {
    const path = place.project(recipe([0]), SUMS);
    const refused = async (...args: string[]) => {
      const { code, err } = await place.mlora("run", path, ...args);
      expect(existsSync(outputOf(path))).toBe(false);
      expect(err.match(/error\[/g)?.length).toBe(1);
      return [code, err.split("\n")[0]];
    };
    expect(await refused("--stages", "6")).toEqual([
      2,
      expect.stringContaining("6 stages are more than the base model's 5 layers"),
    ]);
    expect(await refused("--stages", "2,2")).toEqual([2, expect.stringContaining("2 + 2 = 4 layers")]);
    expect(await refused("--stages", "0")).toEqual([2, expect.stringContaining("--stages 0")]);
    expect(await refused("--here", "1")).toEqual([2, expect.stringContaining("--here goes with --nats")]);
    expect(await refused("--nats", "nats://127.0.0.1:1")).toEqual([
      2,
      expect.stringContaining("the number of stages is not specified"),
    ]);
    expect(await refused("--link", "pigeon")).toEqual([2, expect.stringContaining("--link is 'pigeon'")]);
    expect((await place.mlora("stage", "--run", "x")).code).toBe(2);
    expect((await place.mlora("stage", "--nats", "nats://127.0.0.1:1", "--run", "a.b")).err).toContain(
      "cannot be the id of a run",
    );
  });

  test("a link that cannot be, and a server that is not there, are reported as such", async () => {
    const path = place.project(recipe([0]), SUMS);
    const { code, err } = await place.mlora("run", path, "--stages", "2", "--link", "ipc");
    expect([code, err.match(/^error.*/gm)]).toEqual([
      2,
      [expect.stringContaining("the link 'ipc' cannot work: ipc: they have no GPUs")],
    ]);
    const lost = place.project(recipe([0]), SUMS);
    const away = await place.mlora("run", lost, "--stages", "2", "--nats", "nats://127.0.0.1:1", "--here", "2");
    expect([away.code, away.err.match(/^error.*/gm)]).toEqual([2, [expect.stringContaining("nothing listens at 127.0.0.1:1")]]);
  });
});
