// A run as a library object, without the command line: it comes to the same bytes, and takes requests while it trains.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import * as v from "valibot";
import { loadRecipe } from "../../src/recipe/load.ts";
import { type SessionEvent, sessionEventSchema } from "../../src/session/events/events.ts";
import { openSession, type SessionOptions } from "../../src/session/session.ts";
import { leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const open = (path: string, options: SessionOptions = {}) => openSession(loadRecipe(path), { isReachable: false, ...options });
const statuses = ({ adapters }: { readonly adapters: readonly { readonly name: string; readonly status: string }[] }) =>
  Object.fromEntries(adapters.map(({ name, status }) => [name, status]));

/** Reads a session's events, and waits until one of them is as wanted. */
function reader(events: AsyncIterable<SessionEvent>) {
  const all: SessionEvent[] = [];
  const iterator = events[Symbol.asyncIterator]();
  return {
    all,
    async until(is: (event: SessionEvent) => boolean): Promise<void> {
      for (;;) {
        const { value, done } = await iterator.next();
        if (done) throw new Error("the session ended first");
        all.push(value);
        if (is(value)) return;
      }
    },
    async rest(): Promise<void> {
      for (let next = await iterator.next(); !next.done; next = await iterator.next()) all.push(next.value);
    },
  };
}

test("a session comes to the bytes of `mlora run`", async () => {
  const text = unlike([0, 1, 3], "cpu");
  const [first, second] = [place.project(text, SUMS), place.project(text, SUMS)];
  expect((await place.mlora("run", first)).code).toBe(0);
  const events: SessionEvent[] = [];
  const session = await open(second, { onEvent: (event) => events.push(event) });
  const result = await session.done;
  expect(statuses(result)).toEqual({ a0: "done", a1: "done", a3: "done" });
  for (const name of ["a0", "a1", "a3"]) expect(leftOf(outputOf(second), name)).toEqual(leftOf(outputOf(first), name));
  expect(events.filter(({ type }) => type === "accepted" || type === "opened").map(({ type }) => type)).toEqual([
    "accepted",
    "opened",
  ]);
  for (const event of events) expect(v.parse(sessionEventSchema, JSON.parse(JSON.stringify(event)))).toStrictEqual(event);
  await expect(open(second)).rejects.toMatchObject({ code: "resume.finished" });
});

test("adapters are added, forked, paused, resumed and stopped while others train; all come to the bytes of runs of their own", async () => {
  const text = longer(unlike([3], "cpu", "slots = 3"), 60);
  // A field of its rows is not used, and a key does nothing: the notices are the run's and the caller's.
  const late = longer(unlike([4], "cpu"), 20)
    .replace('"rows.jsonl"', '"noted.jsonl"')
    .replace('name = "a4"', '$&\nscheduler = "constant"\nmin_lr_ratio = 0.5');
  const noted = SUMS["rows.jsonl"].replaceAll(/^\{/gm, '{"note": "for people", ');
  const [alone, lateAlone] = [place.project(text, SUMS), place.project(late, { "noted.jsonl": noted })];
  for (const path of [alone, lateAlone]) expect((await place.mlora("run", path)).code).toBe(0);
  const path = place.project(text, { ...SUMS, "noted.jsonl": noted, "late.toml": late });
  const stepOf = (event: SessionEvent, adapter: number) => (event.type === "step" && event.index === adapter ? event.step : 0);

  await using session = await open(path, { keepOpen: true });
  const events = reader(session.events());
  expect(session.status()).toMatchObject({ state: "starting", adapters: [] });
  expect(() => session.pause("a3")).toThrow(expect.objectContaining({ code: "control.starting" }));
  await events.until((event) => stepOf(event, 0) >= 3);
  expect(session.status()).toMatchObject({ state: "training", stages: 1, adapters: [{ name: "a3", state: "training" }] });

  const [added, ...told] = (await session.add(loadRecipe(join(path, "..", "late.toml")))).split("\n");
  expect(added).toContain("a4: added");
  expect(told).toEqual([
    expect.stringContaining("notice: a4: fields that are not used: 20 rows ("),
    'notice: a4: min_lr_ratio = 0.5 does nothing with the scheduler "constant", whose rate does not fall',
  ]);
  await expect(session.add(loadRecipe(join(path, "..", "late.toml")))).rejects.toMatchObject({ code: "control.name" });
  await events.until((event) => stepOf(event, 1) >= 2);
  expect(session.pause("a4")).toContain("a4: paused");
  expect(() => session.pause("a4")).toThrow("'a4' is paused, or has ended");
  await events.until((event) => stepOf(event, 0) > 0);
  expect(session.resume("a4")).toContain("a4: resumed");

  expect(session.fork({ adapter: "a3", name: "twin", changes: { learning_rate: 1e-3, warmup: 5000 } })).toMatch(
    /^twin: continues from a3.*\nnotice: twin: the learning rate rises in all 300 steps \(warmup = 5,000\)/,
  );
  expect(() => session.fork({ adapter: "a3", name: "other", changes: { rank: 2 } })).toThrow("cannot have another rank");
  await events.until((event) => stepOf(event, 2) > 0);
  const at = session.status().adapters.find(({ name }) => name === "twin")!.step;
  expect(session.stop("twin")).toContain("twin ends after step");
  const wanted = new Set(["a3", "a4", "twin"]);
  await events.until((event) => event.type === "ended" && wanted.delete(event.adapter) && wanted.size === 0);
  expect(session.status().state).toBe("waiting"); // for more adapters
  expect(session.stop()).toContain("the run ends");
  const result = await session.done;
  expect(statuses(result)).toEqual({ a3: "done", a4: "done", twin: "stopped" });
  expect(result.adapters.find(({ name }) => name === "twin")!.steps).toBeGreaterThanOrEqual(at);
  expect(leftOf(outputOf(path), "a3")).toEqual(leftOf(outputOf(alone), "a3"));
  expect(leftOf(outputOf(path), "a4")).toEqual(leftOf(outputOf(lateAlone), "a4"));
  await events.rest();
  const notices = events.all.flatMap((event) => (event.type === "notice" ? [event.text] : []));
  for (const text of told) expect(notices).toContain(text.slice("notice: ".length));
  expect(events.all.filter((event) => stepOf(event, 0) > 0).map((event) => stepOf(event, 0))).toEqual(
    Array.from({ length: 300 }, (_, i) => i + 1),
  );
});

test("stages are opened again for an adapter that they have no capacity for, and no bytes change", async () => {
  const [text, late] = [longer(unlike([2], "cpu"), 40), unlike([1], "cpu")];
  const [alone, lateAlone] = [place.project(text, SUMS), place.project(late, SUMS)];
  for (const path of [alone, lateAlone]) await (await open(path)).done;
  const path = place.project(text, { ...SUMS, "late.toml": late });
  await using session = await open(path);
  const events = reader(session.events());
  await events.until(({ type }) => type === "step");
  expect(await session.add(loadRecipe(join(path, "..", "late.toml")))).toContain("a1: added; the stages are opened again");
  expect(() => session.fork({ adapter: "a2", name: "twin", changes: {} })).toThrow("stages are being opened");
  expect(statuses(await session.done)).toEqual({ a2: "done", a1: "done" });
  await events.rest();
  expect(
    events.all.flatMap((event) => (event.type === "reopening" ? event.cause.why : event.type === "opened" ? "opened" : [])),
  ).toEqual(["opened", "capacity", "opened"]);
  expect(session.plan.slots).toBe(2);
  expect(leftOf(outputOf(path), "a2")).toEqual(leftOf(outputOf(alone), "a2"));
  expect(leftOf(outputOf(path), "a1")).toEqual(leftOf(outputOf(lateAlone), "a1"));
});

test("sessions of one process train concurrently, each to the bytes that it comes to alone; one folder has one session", async () => {
  const texts = [unlike([0, 3], "cpu"), unlike([1], "cpu")];
  const alone = texts.map((text) => place.project(text, SUMS));
  for (const path of alone) await (await open(path)).done;
  const paths = texts.map((text) => place.project(text, SUMS));
  const opened = paths.map(async (path) => {
    const session = await open(path, { keepOpen: true }); // until the folder is asked for
    return { session, events: reader(session.events()) }; // from now on: it may end while the other one opens
  });
  const sessions = await Promise.all(opened);
  await expect(open(paths[0]!)).rejects.toMatchObject({ code: "output.locked" });
  for (const [i, names] of [["a0", "a3"], ["a1"]].entries()) {
    const wanted = new Set(names);
    const { session, events } = sessions[i]!;
    await events.until((event) => event.type === "ended" && wanted.delete(event.adapter) && wanted.size === 0);
    session.stop();
  }
  await Promise.all(sessions.map(({ session }) => session.done));
  for (const name of ["a0", "a3"]) expect(leftOf(outputOf(paths[0]!), name)).toEqual(leftOf(outputOf(alone[0]!), name));
  expect(leftOf(outputOf(paths[1]!), "a1")).toEqual(leftOf(outputOf(alone[1]!), "a1"));
});

test("a disposed session saves what it trained, and the next one continues it to the bytes of one that was never stopped", async () => {
  const text = longer(unlike([0, 1], "cpu"), 20);
  const [whole, path] = [place.project(text, SUMS), place.project(text, SUMS)];
  await (await open(whole)).done;
  {
    await using session = await open(path);
    await reader(session.events()).until(({ type }) => type === "step");
  }
  const made = metrics(outputOf(path), "step").length;
  expect(made).toBeLessThan(20 * (6 + 4));
  const session = await open(path, { resume: true });
  expect(statuses(await session.done)).toEqual({ a0: "done", a1: "done" });
  for (const name of ["a0", "a1"]) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(whole), name));
});

test("a reader that stops reading, and one that never reads, hold up nothing", async () => {
  const session = await open(place.project(unlike([0], "cpu"), SUMS));
  session.events();
  for await (const { type } of session.events()) if (type === "opened") break;
  expect(statuses(await session.done)).toEqual({ a0: "done" });
  for await (const _ of session.events()) throw new Error("the session is over");
});

test("an aborted signal ends the opening, and leaves the folder to the next session", async () => {
  const path = place.project(unlike([0], "cpu"), SUMS);
  const stop = new AbortController();
  stop.abort();
  await expect(open(path, { signal: stop.signal })).rejects.toMatchObject({ code: "run.stopped" });
  await expect(open(path, { resume: true })).rejects.toMatchObject({ code: "resume.none" });
  expect(statuses(await (await open(path)).done)).toEqual({ a0: "done" });
});
