// An addition of many rows is read while the run trains, answers within seconds, and ends when it is asked to.

import { afterAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
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
const manyRows = (word: string) =>
  Array.from({ length: 150_000 }, (_, i) => `{"prompt": "${i} ${word}", "completion": "xyz${i % 7}"}\n`).join("");
/** Two that train for as long as the test takes. */
const text = unlike([0, 2], "cpu").replaceAll(/^steps = \d+$/gm, "steps = 100000");
const late = text
  .slice(0, text.indexOf('[[adapter]]\nname = "a2"'))
  .replace('name = "a0"', 'name = "late"\ndata = { train = "many.jsonl", split = 0.01 }');

needs("nats")("an addition of 150,000 rows", () => {
  test.each(["SIGINT", "SIGTERM"] as const)(
    "does not keep a run from steps, from answers and from %s",
    async (signal) => {
      const path = place.project(text, { ...SUMS, "many.jsonl": manyRows(signal), "late.toml": late });
      const output = join(path, "..", "out");
      const steps = (adapter: string) =>
        existsSync(join(output, "metrics.jsonl"))
          ? metrics(output, "step").filter((line) => line["adapter"] === adapter).length
          : 0;
      const run = place.start(["run", path]);
      await until("steps", 60_000, () => steps("a0") > 1 && steps("a2") > 1);
      const add = place.start(["add", output, join(path, "..", "late.toml")]);
      const isRead = () => filesOf(run.pid).some((file) => file.endsWith("many.jsonl"));
      await Promise.race([
        until("its reading", 60_000, isRead),
        add.ended.then(({ err }) => {
          throw new Error(err);
        }),
      ]);

      await using asking = await asker(place);
      const { ask } = asking;
      const before = steps("a2");
      expect((await ask({ type: "status" })).state).toBe("training");
      expect(await ask({ type: "pause", adapter: "a0" })).toContain("a0: paused");
      expect((await ask({ type: "status" })).adapters.find(({ name }) => name === "a0")?.state).toMatch(/^paus(ing|ed)$/);
      expect(await ask({ type: "resume", adapter: "a0" })).toContain("a0: resumed");
      expect(await ask({ type: "stop", adapter: "a0" })).toContain("a0 ends after step");
      await until("more steps", 60_000, () => steps("a2") > before + 2);
      expect(isRead()).toBe(true); // all that was while it is read

      run.kill(signal);
      const begun = performance.now();
      expect(await run.ended).toMatchObject({
        code: 1,
        err: expect.stringContaining("error[run.stopped]: stopped before the end"),
      });
      expect(performance.now() - begun).toBeLessThan(30_000); // reading takes longer than its rest
      const { code, err } = await add.ended;
      expect(code).not.toBe(0);
      expect(err).toMatch(/error\[control\.(ending|lost)\]/);
    },
    300_000,
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
  }, 150_000);

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
  }, 100_000);

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
      await until("it is sent again", 30_000, () => heard > 2);
      return "paused";
    };
    using _serving = serveControl(answering, run, again, (why) => expect(why).toBe(""));
    expect(await answer).toBe("paused");
    expect(done).toBe(1);
    await server[Symbol.asyncDispose]();
  }, 100_000);
});
