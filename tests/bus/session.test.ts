// A session that other processes reach: they find it while it runs, and change it as its own client does.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { serveControl, starting } from "../../src/bus/control.ts";
import { connectSealed, newRunKey } from "../../src/bus/seal.ts";
import { newRunId } from "../../src/bus/subjects.ts";
import { announce } from "../../src/cluster/registry.ts";
import { startServer } from "../../src/cluster/server.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { findSession, remoteSessions } from "../../src/session/remote-session.ts";
import { RunControl } from "../../src/session/run-control.ts";
import { openSession, type Session, type SessionOptions } from "../../src/session/session.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { childrenOf, commandOf, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
const before = process.env["MLORA_CACHE"];
beforeAll(() => {
  process.env["MLORA_CACHE"] = join(place.root, "cache"); // other runs of this user are not in the way
});
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  place[Symbol.dispose]();
});

const outputOf = (path: string) => join(path, "..", "out");
const open = (path: string, options?: SessionOptions) => openSession(loadRecipe(path), options);
const isListed = ({ run }: Session) => remoteSessions().some((of) => of.run === run);
const stateOf = (session: Session, adapter: string) => session.status().adapters.find(({ name }) => name === adapter)?.state;
const find = (name: string) => findSession(name, ({ run }) => run);

needs("nats")("a session", () => {
  test("is found by its run's id and its folder, answers as it does here, and is gone after its end", async () => {
    const text = longer(unlike([3], "cpu", "slots = 2"), 40);
    const late = longer(unlike([4], "cpu"), 10);
    const [path, lateAlone] = [place.project(text, { ...SUMS, "late.toml": late }), place.project(late, SUMS)];
    await using session = await open(path, { keepOpen: true });
    await until("it is open", 60_000, () => remoteSessions().some(({ run, isOpen }) => run === session.run && isOpen));
    const remote = find(outputOf(path));
    expect([remote.run, remote.pid]).toEqual([session.run, process.pid]);
    expect(find(session.run.slice(0, -1)).output).toBe(outputOf(path));
    await until("it trains", 60_000, () => stateOf(session, "a3") === "training");
    expect((await remote.status()).adapters.map(({ name, steps }) => [name, steps])).toEqual([["a3", 200]]);

    expect(await remote.pause("a3")).toContain("a3: paused");
    await expect(remote.pause("a3")).rejects.toMatchObject({ code: "control.adapter" });
    await until("it is paused", 60_000, () => stateOf(session, "a3") === "paused");
    expect(await remote.add(loadRecipe(join(path, "..", "late.toml")))).toContain("a4: added");
    expect(await remote.resume()).toContain("a3: resumed");
    await until("both end", 120_000, () => ["a3", "a4"].every((name) => stateOf(session, name) === "done"));
    expect(await remote.stop()).toContain("the run ends");
    await session.done;
    expect(isListed(session)).toBe(false);
    await expect(remote.status()).rejects.toThrow();
    expect(() => find(session.run)).toThrow(expect.objectContaining({ code: "control.run" }));
    const alone = await open(lateAlone, { isReachable: false });
    expect(isListed(alone)).toBe(false);
    await alone.done;
    expect(leftOf(outputOf(path), "a4")).toEqual(leftOf(outputOf(lateAlone), "a4"));
  }, 300_000);

  test("is asked while its stages are being opened: what changes it waits until they are, its status does not", async () => {
    const text = longer(unlike([2], "cpu", "slots = 2"), 20);
    const path = place.project(text, { ...SUMS, "late.toml": longer(unlike([4], "cpu"), 10) });
    await using session = await open(path, { keepOpen: true });
    const told: string[] = [];
    const remote = findSession(outputOf(path), ({ run }) => run, { notice: (text) => told.push(text) });
    expect(remote.isOpen).toBe(false);
    const [added, paused] = [remote.add(loadRecipe(join(path, "..", "late.toml"))), remote.pause("a2")];
    await expect(remote.status()).rejects.toMatchObject({ code: "control.starting" });
    expect([await added, await paused]).toEqual([expect.stringContaining("a4: added"), "a2: paused until resumed"]);
    expect(told).toEqual(Array(2).fill("the run's stages are being opened: it is asked when they are open"));
    await until("the late one ends", 120_000, () => stateOf(session, "a4") === "done");
    expect(stateOf(session, "a2")).toBe("paused");
    expect(session.status().adapters.find(({ name }) => name === "a2")!.step).toBeLessThan(180);

    const ended = place.project(unlike([0], "cpu"), SUMS);
    await using short = await open(ended);
    const waiting = find(outputOf(ended));
    short.stop();
    await expect(waiting.pause("a0")).rejects.toMatchObject({
      code: "control.lost",
      message: expect.stringContaining("is over"),
    });
  }, 300_000);

  test("is asked again for an addition that was being read when its stages were opened again", async () => {
    await using server = await startServer();
    const [run, key] = [newRunId(), newRunKey()];
    await using answering = await connectSealed(server.address, "a run", key);
    using known = announce({ run, output: place.root });
    known.reachable({ address: server.address, key });
    const heard: string[] = [];
    const outcomes = [
      { ticket: "first", reading: "2 rows" },
      starting(),
      { ticket: "second", reading: "3 rows" },
      "late: added",
    ];
    using _serving = serveControl(
      answering,
      run,
      async (request) => {
        heard.push(request.type === "outcome" ? request.ticket : request.type);
        const outcome = outcomes.shift()!;
        if (outcome instanceof Error) throw outcome;
        return outcome;
      },
      () => undefined,
    );
    await answering.flush();
    const path = place.project(unlike([0], "cpu"), SUMS);
    const progress: string[] = [];
    expect(await find(run).add(loadRecipe(path), (text) => progress.push(text))).toBe("late: added");
    expect(heard).toEqual(["add", "first", "add", "second"]);
    expect(progress).toEqual(["2 rows", "3 rows"]);
  });

  test("learns what an addition came to while its stages were opened again between two questions, and adds nothing twice", async () => {
    const run = newRunId();
    const joined = Promise.withResolvers<string>();
    let added = 0;
    const add = () => {
      added++;
      return joined.promise;
    };
    using known = announce({ run, output: place.root });
    const none = () => {
      throw new Error("nothing else is asked");
    };
    const control = new RunControl({ add, status: none, stop: none, pause: none, resume: none, fork: none }, known);
    /** Each time that stages are opened they have a server of their own. */
    const opened = async () => {
      await using all = new AsyncDisposableStack();
      const server = all.use(await startServer());
      const connection = all.use(await connectSealed(server.address, "a run", newRunKey()));
      all.use(await control.serve({ connection, run }));
      return all.move();
    };
    const first = await opened();
    let closed: Promise<void> | null = null;
    const told: string[] = [];
    const remote = findSession(run, (of) => of.run, { notice: (text) => told.push(text) });
    const answer = remote.add(loadRecipe(place.project(unlike([0], "cpu"), SUMS)), () => {
      closed ??= first.disposeAsync(); // it has been read, and lacks room: stages are opened for it
      joined.resolve("a0: added; the stages are opened again");
    });
    answer.catch(() => undefined);
    await until("it waits", 60_000, () => told.length > 0);
    await closed;
    await using _second = await opened();
    expect(await answer).toContain("a0: added");
    expect(added).toBe(1);
  }, 120_000);

  test("of several stages continues after one is killed, reports it in an event, and comes to the bytes of one stage", async () => {
    const text = longer(unlike([0, 1], "cpu", "checkpoint = { steps = 4 }\nrestarts = 1"), 20);
    const [path, alone] = [place.project(text, SUMS), place.project(text, SUMS)];
    await (await open(alone, { isReachable: false })).done;
    await using session = await openSession(loadRecipe(path, { stages: 2 }), { isReachable: false });
    const causes: unknown[] = [];
    let killed = false;
    for await (const event of session.events()) {
      if (event.type === "reopening") causes.push(event.cause);
      if (event.type !== "step" || event.step < 12 || killed) continue;
      killed = true;
      const stage = childrenOf(process.pid).find((pid) => commandOf(pid).includes("stage --orders"));
      process.kill(stage!, "SIGKILL");
    }
    const { adapters } = await session.done;
    expect(adapters.map(({ status }) => status)).toEqual(["done", "done"]);
    expect(causes).toEqual([
      { why: "lost", message: expect.stringContaining("was killed by SIGKILL"), restart: 1, restarts: 1 },
    ]);
    for (const name of ["a0", "a1"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(alone), name));
    expect(childrenOf(process.pid).filter((pid) => /stage --orders|nats-server/.test(commandOf(pid)))).toEqual([]);
  }, 300_000);
});
