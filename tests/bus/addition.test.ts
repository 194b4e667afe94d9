// An addition of many rows is read while the run trains, answers within seconds, and ends when it is asked to.

import { afterAll, expect, test } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { askControl, serveControl } from "../../src/bus/control.ts";
import { connectSealed, newRunKey } from "../../src/bus/seal.ts";
import { newRunId, subjectsOf } from "../../src/bus/subjects.ts";
import { startServer } from "../../src/cluster/server.ts";
import { asker } from "../helpers/ask.ts";
import { until } from "../helpers/bus.ts";
import { needs } from "../helpers/needs.ts";
import { filesOf, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** Rows that nothing has read yet: what has been tokenised once is read in no time. */
const manyRows = (count: number, word: string) =>
  Array.from({ length: count }, (_, i) => `{"prompt": "${i} ${word}", "completion": "xyz${i % 7}"}\n`).join("");
/** Four times as many where a machine reads the fewer before it has answered. */
const COUNTS = [150_000, 600_000, 2_400_000];
/** Two that train for as long as the test takes. */
const text = unlike([0, 2], "cpu").replaceAll(/^steps = \d+$/gm, "steps = 100000");
const late = text
  .slice(0, text.indexOf('[[adapter]]\nname = "a2"'))
  .replace('name = "a0"', 'name = "late"\ndata = { train = "many.jsonl", split = 0.01 }');

const stepsOf = (output: string, adapter: string) =>
  existsSync(join(output, "metrics.jsonl")) ? metrics(output, "step").filter((line) => line["adapter"] === adapter).length : 0;

/** Whether the rows were still being read when all had been asked; then the run has ended by the signal as it has to. */
async function outlasts(count: number, signal: "SIGINT" | "SIGTERM"): Promise<boolean> {
  const path = place.project(text, { ...SUMS, "many.jsonl": manyRows(count, signal), "late.toml": late });
  const output = join(path, "..", "out");
  const run = place.start(["run", path]);
  await until("steps", 60_000, () => stepsOf(output, "a0") > 1 && stepsOf(output, "a2") > 1);
  const add = place.start(["add", output, join(path, "..", "late.toml")]);
  let isAnswered = false;
  void add.ended.then(() => {
    isAnswered = true;
  });
  /** Opened twice: for its digest, and for its rows. */
  const isRead = () => filesOf(run.pid).some((file) => file.endsWith("many.jsonl"));
  const reading = () => until("its reading", 60_000, () => isRead() || isAnswered);
  await reading();

  {
    await using asking = await asker(place);
    const { ask } = asking;
    const before = stepsOf(output, "a2");
    expect((await ask({ type: "status" })).state).toBe("training");
    expect(await ask({ type: "pause", adapter: "a0" })).toContain("a0: paused");
    expect((await ask({ type: "status" })).adapters.find(({ name }) => name === "a0")?.state).toMatch(/^paus(ing|ed)$/);
    expect(await ask({ type: "resume", adapter: "a0" })).toContain("a0: resumed");
    expect(await ask({ type: "stop", adapter: "a0" })).toContain("a0 ends after step");
    await until("more steps", 60_000, () => stepsOf(output, "a2") > before + 2);
  }
  await reading();
  const wasRead = !isAnswered; // all that was while it is read

  run.kill(signal);
  const begun = performance.now();
  const ended = await run.ended;
  const { code, err } = await add.ended;
  rmSync(join(path, ".."), { recursive: true });
  if (!wasRead || code === 0) return false;
  expect(ended).toMatchObject({ code: 1, err: expect.stringContaining("error[run.stopped]: stopped before the end") });
  expect(performance.now() - begun).toBeLessThan(30_000); // reading takes longer than its rest
  expect(err).toMatch(/error\[control\.(ending|lost)\]/);
  return true;
}

needs("nats")("an addition of many rows", () => {
  test.each(["SIGINT", "SIGTERM"] as const)(
    "does not keep a run from steps, from answers and from %s",
    async (signal) => {
      for (const count of COUNTS) if (await outlasts(count, signal)) return;
      throw new Error(`${COUNTS.at(-1)} rows were read before the questions were answered`);
    },
    600_000,
  );
});

needs("nats")("a request", () => {
  test("fails soon when the run's server goes away before its answer", async () => {
    const server = await startServer();
    await using connection = await connectSealed(server.address, "a test", newRunKey());
    const answer = askControl(connection, newRunId(), { type: "status" }, 120_000);
    answer.catch(() => undefined);
    await connection.flush();
    const begun = performance.now();
    await server[Symbol.asyncDispose]();
    await expect(answer).rejects.toMatchObject({
      code: "control.lost",
      message: expect.stringContaining("was lost before it answered"),
    });
    expect(performance.now() - begun).toBeLessThan(60_000);
  });

  test("fails at once when the run's server has gone away before it is asked", async () => {
    const server = await startServer();
    await using connection = await connectSealed(server.address, "a test", newRunKey());
    let isLost = false;
    using _watching = connection.watch((state) => {
      isLost = state === "lost";
    });
    await server[Symbol.asyncDispose]();
    await until("the loss", 60_000, () => isLost);
    await expect(askControl(connection, newRunId(), { type: "status" }, 120_000)).rejects.toMatchObject({
      code: "control.lost",
    });
  });

  test("is heard by a run that listens only after it was sent, and done once however often it is", async () => {
    const server = await startServer();
    const key = newRunKey();
    await using asking = await connectSealed(server.address, "a test", key);
    await using answering = await connectSealed(server.address, "a run", key);
    const run = newRunId();
    const answer = askControl(asking, run, { type: "pause", adapter: null }, 60_000);
    await asking.flush();
    let [heard, done] = [0, 0];
    using _heard = answering.subscribe(subjectsOf(run).control, () => void heard++);
    const again = async () => {
      done++;
      await until("it is sent again", 150_000, () => heard > 2);
      return "paused";
    };
    using _serving = serveControl(answering, run, again, (why) => expect(why).toBe(""));
    expect(await answer).toBe("paused");
    expect(done).toBe(1);
    await server[Symbol.asyncDispose]();
  });
});
