// Training that begins before all rows are read comes to what it comes to after that, and leaves nothing of rows at fault.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { range } from "../../src/base/shape.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import { openSession, type Session } from "../../src/session/session.ts";
import { EARLY, isEarly, manyRows } from "../helpers/early.ts";
import { beforeItsEnd, inTheMiddle } from "../helpers/middle.ts";
import { leftOf, metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace(1);
const cache = join(place.root, "cache");
const before = process.env["MLORA_CACHE"];
process.env["MLORA_CACHE"] = cache;
afterAll(() => {
  process.env["MLORA_CACHE"] = before;
  if (before === undefined) delete process.env["MLORA_CACHE"];
  place[Symbol.dispose]();
});

const pairs = range(40).map(
  (i) => `${JSON.stringify({ prompt: `p${i}`, chosen: `yes ${i}`, rejected: "n".repeat(1 + (i % 9)) })}\n`,
);
const HEAD = '[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\ntokens_per_microbatch = 90\n';
const DEFAULTS = "[defaults]\nmax_length = 60\nlearning_rate = 3e-3\n";
const ADAPTERS = `
[[adapter]]
name = "split"
data = { train = "rows.jsonl", split = 0.003 }
steps = 9
batch_size = 3
dropout = 0.1
eval_every = 4
[[adapter]]
name = "whole"
data = "rows.jsonl"
rank = 3
steps = 7
accumulation = 2
[[adapter]]
name = "mixed"
data = { train = [{ path = "rows.jsonl", weight = 1 }, { path = "few.jsonl", weight = 2 }] }
steps = 8
[[adapter]]
name = "pairs"
objective = "orpo"
data = "pairs.jsonl"
steps = 5
`;

type Made = { readonly session: Session; readonly events: SessionEvent[]; readonly out: string };
/** Opens a run that has the rows to read; `patienceMs` 0: that begins before, if it can. */
async function open(path: string, patienceMs: number, onEvent: (event: SessionEvent) => void = () => undefined): Promise<Made> {
  rmSync(cache, { recursive: true, force: true });
  const events: SessionEvent[] = [];
  const take = (event: SessionEvent) => {
    events.push(event);
    onEvent(event);
  };
  const session = await openSession(loadRecipe(path), { isReachable: false, early: { patienceMs }, onEvent: take });
  return { session, events, out: join(path, "..", "out") };
}
const LATE = 3_600_000;
const files = (rows: readonly string[]) => ({
  "rows.jsonl": rows.join(""),
  "few.jsonl": manyRows(30).join(""),
  "pairs.jsonl": pairs.join(""),
});
/** Adapters, and the rows that a run continues by. */
const leftIn = (out: string, names: readonly string[]) => {
  const { adapters } = JSON.parse(readFileSync(join(out, "run.json"), "utf8"));
  return names.map((name) => ({ ...leftOf(out, name), data: adapters[name].made.data }));
};
const NAMES = ["split", "whole", "mixed", "pairs"];

test("adapters come out the same, bit for bit, whether training waits for all rows or not", async () => {
  const found = await inTheMiddle(async (factor) => {
    const text = files(manyRows(5_000 * factor));
    const early = await open(place.project(HEAD + DEFAULTS + ADAPTERS, text), 0);
    await early.session.done;
    return isEarly(early.events) && firstStepIsBefore(early) ? { text, early } : null;
  });
  const late = await open(place.project(HEAD + DEFAULTS + ADAPTERS, found.text), LATE);
  await late.session.done;
  expect(isEarly(late.events)).toBe(false);
  expect(leftIn(found.early.out, NAMES)).toEqual(leftIn(late.out, NAMES));
  const notices = (events: readonly SessionEvent[]) =>
    events
      .flatMap((event) => (event.type === "notice" ? [event.text] : event.type === "accepted" ? event.notices : []))
      .map((text) => text.replaceAll(/[^ (]*\/(?=\w+\.jsonl)/g, ""));
  const ofRows = notices(late.events);
  for (const of of ["fields that are not used", "an epoch has"]) expect(ofRows.join("\n")).toContain(of);
  expect(
    notices(found.early.events)
      .filter((text) => !text.startsWith(EARLY))
      .sort(),
  ).toEqual(ofRows.sort());
});

/** A step was made before the last of the reading was heard. */
const firstStepIsBefore = ({ events }: Made): boolean =>
  events.findIndex(({ type }) => type === "step") < events.findLastIndex(({ type }) => type === "reading");

describe("a row at fault", () => {
  const bad = (count: number) => [...manyRows(count), '{"prompt": "no completion"}\n'];
  const ONE = '[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 6\nbatch_size = 2\n';
  const run = `${HEAD}checkpoint = { steps = 2 }\n${DEFAULTS}${ONE}`;

  test("in the last line ends the run as it does before training, and leaves no adapter; fixed rows are trained anew", async () => {
    const { early, count, error } = await inTheMiddle(async (factor) => {
      const count = 5_000 * factor;
      const early = await open(place.project(run, files(bad(count))), 0).catch(() => null);
      const error = early && (await early.session.done.catch((error) => error));
      const isBegun = early && isEarly(early.events) && early.events.some(({ type }) => type === "step");
      return isBegun ? { early, count, error } : null;
    });
    const path = join(early.out, "..", "recipe.toml");
    const late: unknown = await open(place.project(run, files(bad(count))), LATE).catch((error) => error);
    expect(error).toBeInstanceOf(RequestError);
    expect(late).toBeInstanceOf(RequestError);
    const said = ({ code, message, hint, exit }: RequestError) => [
      code,
      message.replaceAll(/[^\n]*rows\.jsonl/g, "rows.jsonl"),
      hint,
      exit,
    ];
    expect(said(error as RequestError)).toEqual(said(late as RequestError));
    expect((error as RequestError).message).toMatch(/rows\.jsonl:\d+: .*completion/);
    expect(early.events.filter(({ type }) => ["saved", "ended", "reopening"].includes(type))).toEqual([]);
    for (const name of ["a", "run.json", "checkpoints"]) expect(existsSync(join(early.out, name))).toBe(false);

    writeFileSync(join(path, "..", "rows.jsonl"), manyRows(count).join(""));
    const again = await open(path, 0);
    await again.session.done;
    const undisturbed = await open(place.project(run, files(manyRows(count))), LATE);
    await undisturbed.session.done;
    expect(leftIn(again.out, ["a"])).toEqual(leftIn(undisturbed.out, ["a"]));
  });
});

test("rows that are dropped have training begin anew with those that are left", async () => {
  const ONE = '[[adapter]]\nname = "a"\ndata = { train = "rows.jsonl", split = 0.01 }\nsteps = 9\n';
  const rows = (count: number) =>
    manyRows(count, (i) => (i === count / 2 || i > count - 9 ? { prompt: "long ".repeat(40) } : {}));
  const { early, count } = await inTheMiddle(async (factor) => {
    const count = 5_000 * factor;
    const early = await open(place.project(HEAD + DEFAULTS + ONE, files(rows(count))), 0);
    await early.session.done;
    return early.events.some(({ type }) => type === "reopening") ? { early, count } : null;
  });
  const late = await open(place.project(HEAD + DEFAULTS + ONE, files(rows(count))), LATE);
  await late.session.done;
  expect(leftIn(early.out, ["a"])).toEqual(leftIn(late.out, ["a"]));
  expect(early.events.filter(({ type }) => type === "reopening")).toHaveLength(1);
});

test("a run that is stopped while rows are read keeps nothing, and copies are refused meanwhile", async () => {
  const ONE = '[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1000000\n';
  const { early, error, refused } = await inTheMiddle(async (factor) => {
    let refused: unknown = null;
    const path = place.project(HEAD + DEFAULTS + ONE, files(manyRows(5_000 * factor)));
    const asked = Promise.withResolvers<void>();
    const early = await open(path, 0, ({ type }) => type === "step" && asked.resolve());
    await asked.promise;
    try {
      early.session.fork({ adapter: "a", name: "b", changes: {} });
    } catch (error) {
      refused = error;
    }
    early.session.stop();
    const error = await early.session.done.catch((error) => error);
    return isEarly(early.events) && error instanceof Error ? { early, error, refused } : null;
  });
  expect(refused).toMatchObject({ code: "control.reading" });
  expect(error).toMatchObject({ code: "run.stopped", message: "stopped before all rows were read: nothing is saved" });
  for (const name of ["a", "run.json", "checkpoints"]) expect(existsSync(join(early.out, name))).toBe(false);
});

test("an addition waits for the rows of the run, and all come out as they do alone", async () => {
  const one = (name: string, rank: number, steps: number) =>
    `[[adapter]]\nname = "${name}"\nrank = ${rank}\ndata = "rows.jsonl"\nsteps = ${steps}\n`;
  const { early, text, steps, sentence } = await inTheMiddle(async (factor) => {
    const [text, steps] = [files(manyRows(5_000 * factor)), 400 * factor];
    const path = place.project(HEAD + DEFAULTS + one("a", 2, steps), text);
    writeFileSync(join(path, "..", "late.toml"), HEAD + DEFAULTS + one("late", 40, 5));
    const asked = Promise.withResolvers<void>();
    const early = await open(path, 0, ({ type }) => type === "step" && asked.resolve());
    await asked.promise;
    const isBefore = isEarly(early.events);
    const added = early.session.add(loadRecipe(join(path, "..", "late.toml")));
    const sentence = await added.catch(() => null); // the run may have ended before
    await early.session.done;
    return isBefore && sentence !== null ? { early, text, steps, sentence } : null;
  });
  expect(sentence).toContain("opened again");
  const late = await open(place.project(HEAD + DEFAULTS + one("a", 2, steps) + one("late", 40, 5), text), LATE);
  await late.session.done;
  expect(leftIn(early.out, ["a", "late"])).toEqual(leftIn(late.out, ["a", "late"]));
});

describe("a kill", () => {
  // A tenth of a second and more for each of the last rows.
  const SLOW =
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}{% endfor %}" +
    "{% if 'slow' in messages[0]['content'] %}{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}{% endif %}";
  const rows = (slow: number) => manyRows(5_000, (i) => (i >= 5_000 - slow ? { prompt: `slow ${i}` } : {})).join("");
  const text = (steps: number) =>
    `${HEAD}checkpoint = { steps = 1 }\n${DEFAULTS}[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nchat_template = "slow.jinja"\nsteps = ${steps}\n`;
  // Reading gets longer, so that training begins before its end, and training longer still, so that it ends after it.
  const of = (factor: number) =>
    place.project(text(300 * factor), { "rows.jsonl": rows(3 * Math.sqrt(factor)), "slow.jinja": SLOW });
  const out = (path: string) => join(path, "..", "out");
  const steps = (path: string) => (existsSync(join(out(path), "metrics.jsonl")) ? metrics(out(path), "step").length : 0);
  const isKept = (path: string): boolean => {
    try {
      return readdirSync(join(out(path), "checkpoints", "a")).length > 0;
    } catch {
      return false; // not there yet, or no more
    }
  };

  test.each([
    ["while rows are read", (path: string) => steps(path) > 3],
    ["when all are read, and what was trained before is kept,", isKept],
  ])("%s leaves a run that comes to the same", async (_, isThere) => {
    const { path, factor } = await inTheMiddle(async (factor) => {
      rmSync(cache, { recursive: true, force: true });
      const path = of(factor);
      const running = place.start(["run", path]);
      await beforeItsEnd(running, "the middle", () => isThere(path));
      running.kill("SIGKILL");
      const { err } = await running.ended;
      return !existsSync(join(out(path), "run.json")) && err.includes(EARLY) ? { path, factor } : null;
    });
    const again = await place.mlora("run", path);
    expect([again.code, again.code === 0 ? "" : again.err]).toEqual([0, ""]);
    const undisturbed = of(factor);
    expect((await place.mlora("run", undisturbed)).code).toBe(0); // its rows are in the cache
    expect(leftIn(out(path), ["a"])).toEqual(leftIn(out(undisturbed), ["a"]));
  });
});
