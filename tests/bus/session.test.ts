// A session that other processes reach: they find it while it runs, and change it as its own client does.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import { findSession, remoteSessions } from "../../src/session/remote-session.ts";
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
