// The live page of a real run and of a real server: what its events tell is what the run writes, and its controls work.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import { openRunPage, pagePlace } from "../../src/serve/run-page.ts";
import { openSession } from "../../src/session/session.ts";
import { runSource } from "../../src/web/run-source.ts";
import type { RowsAnswer, SpansAnswer } from "../../src/web/wire.ts";
import { askPage, watch } from "../helpers/page.ts";
import { leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";
import { chatRows, jsonOf, KEYS, serverFolder, startServer, upload } from "../helpers/server.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** A run with a page, as `mlora run --web` opens it. */
async function openWatched(path: string) {
  const output = join(path, "..", "out");
  const source = runSource("run", output);
  const page = openRunPage(source, pagePlace({ web: "127.0.0.1:0" }));
  const options = { isReachable: false, isBusy: true, keepOpen: true, onEvent: source.take };
  const session = await openSession(loadRecipe(path), options);
  source.attach(session);
  return { page, session, output };
}

test("a run that is watched comes to the bytes of one that is not, and its page tells what it writes", async () => {
  const text = longer(unlike([0, 1, 3], "cpu", "stages = 2"), 4);
  const [alone, path] = [place.project(text, SUMS), place.project(text, SUMS)];
  expect((await place.mlora("run", alone)).code).toBe(0);
  const { page, session, output } = await openWatched(path);
  await using _page = page;
  await using _session = session;
  await using viewer = await watch(page.viewUrl);
  const stateOf = (name: string) => viewer.adapters.get(name)?.state;
  await viewer.until(() => viewer.adapters.get("a0")!.step >= 2);

  const rows = (await jsonOf(askPage(page.viewUrl, "/page/rows?adapter=a0"))) as NonNullable<RowsAnswer>;
  expect(rows.rows.length).toBeGreaterThan(0);
  const data = SUMS["rows.jsonl"]
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  for (const parts of rows.rows) {
    const all = parts.map((part) => part.text).join("");
    const row = data.find(({ prompt }) => all.includes(prompt));
    expect(row).toBeDefined();
    const learned = parts.filter(({ isLearned }) => isLearned).map((part) => part.text);
    expect(learned.length).toBe(1);
    expect(learned[0]).toStartWith(row.completion);
    expect(all.endsWith(learned[0]!)).toBe(true);
  }

  const spansOf = async () => (await jsonOf(askPage(page.viewUrl, "/page/spans"))) as SpansAnswer;
  let spans = await spansOf();
  for (const end = performance.now() + 60_000; !spans.stages.every((of) => of.length > 4); spans = await spansOf())
    if (performance.now() > end) throw new Error("no spans came");
  expect(spans.stages.length).toBe(2);
  expect(spans.names.every((name) => ["a0", "a1", "a3"].includes(name))).toBe(true);
  for (const of of spans.stages)
    for (const [i, { start, end, adapters }] of of.entries()) {
      expect(end).toBeGreaterThanOrEqual(start);
      if (i > 0) expect(start).toBeGreaterThanOrEqual(of[i - 1]!.end - 0.2); // tenths, rounded
      expect(adapters.every((at) => spans.names[at] !== undefined)).toBe(true);
    }

  await viewer.until(() => ["a0", "a1", "a3"].every((name) => stateOf(name) === "done"));
  await using late = await watch(page.url);
  for (const name of ["a0", "a1", "a3"]) {
    expect(leftOf(output, name)).toEqual(leftOf(join(alone, "..", "out"), name));
    const written = metrics(output, "step").filter((line) => line["adapter"] === name);
    const { points, heldOuts, bestHeldOut } = late.adapters.get(name)!;
    const short = (value: unknown) => Number((value as number).toPrecision(5));
    expect(points.map(([step, loss, norm]) => [step, loss, norm])).toEqual(
      written.map(({ step, loss, grad_norm }) => [step as number, short(loss), short(grad_norm)]),
    );
    const measured = metrics(output, "evaluation").filter((line) => line["adapter"] === name);
    expect(heldOuts).toEqual(measured.map(({ step, loss }) => [step as number, loss as number]));
    expect(bestHeldOut).toBe(Math.min(...measured.map(({ loss }) => loss as number)));
    // What came bit by bit ends where the whole does.
    expect(viewer.adapters.get(name)!.points.at(-1)![0]).toBe(points.at(-1)![0]);
  }
});

test("a run is paused, resumed, forked and stopped by its page, and continued with the curves that it had", async () => {
  const path = place.project(longer(unlike([0, 1], "cpu", "slots = 3"), 5000), SUMS);
  const first = await openWatched(path);
  {
    const { page, session } = first;
    await using _session = session;
    await using viewer = await watch(page.url);
    const control = async (body: object) => {
      const response = await askPage(page.url, "/page/control", body);
      return { status: response.status, ...((await response.json()) as { message?: string; error?: { message: string } }) };
    };
    const at = (name: string) => viewer.adapters.get(name);
    await viewer.until(() => at("a0")!.step >= 3 && at("a1")!.step >= 3);
    expect(await control({ action: "pause", adapter: "a0" })).toMatchObject({
      status: 200,
      message: "a0: paused until resumed",
    });
    await viewer.until(() => at("a0")!.state === "paused");
    const { step } = at("a0")!;
    await viewer.until(() => at("a1")!.step >= step + 3);
    expect(at("a0")!.step).toBe(step);
    const fork = { action: "fork", adapter: "a1", name: "copy", set: "learning_rate = 1e-4, steps = 90000" };
    expect((await control(fork)).status).toBe(200);
    expect((await control(fork)).status).toBe(400);
    expect((await control({ ...fork, name: "b", set: "rank = " })).error!.message).toContain("write keys as in a recipe");
    expect((await control({ ...fork, name: "b", set: "colour = 1" })).error!.message).toContain("colour");
    expect((await control({ action: "stop", adapter: "nothing" })).error!.message).toContain("no adapter 'nothing'");
    await viewer.until(() => (at("copy")?.step ?? 0) > 0 && at("copy")!.learningRate! <= 1e-4);
    expect((await control({ action: "stop", adapter: "a1" })).status).toBe(200);
    await viewer.until(() => at("a1")!.state === "stopped");
    expect((await control({ action: "resume", adapter: null })).status).toBe(200);
    await viewer.until(() => at("a0")!.step > step);
    expect((await control({ action: "stop", adapter: null })).status).toBe(200);
    await session.done;
  }
  await first.page[Symbol.asyncDispose]();

  const written = metrics(first.output, "step").filter((line) => line["adapter"] === "a1");
  const { page, session } = await openWatched(path);
  await using _page = page;
  await using _session = session;
  await using viewer = await watch(page.url);
  const { points, stride } = viewer.adapters.get("a1")!;
  expect(points.at(-1)![0]).toBeGreaterThanOrEqual(written.length);
  expect(stride).toBe(1);
  expect(points.slice(0, written.length).map(([step]) => step)).toEqual(written.map(({ step }) => step as number));
});

test("a server's page shows the jobs of its key alone, and a read-only link changes none", async () => {
  const server = await startServer(place, serverFolder(place, "served"));
  const linkOf = (key: string) => `${server.url}/#key=${key}`;
  const [one, two] = [linkOf(KEYS.one), linkOf(KEYS.two)];
  const file = await upload(server.ask, chatRows(400)); // 20,000 steps, of which it is stopped
  const method = { type: "supervised", supervised: { hyperparameters: { n_epochs: 50, batch_size: 1 } } };
  const job = await jsonOf(
    server.ask("/v1/fine_tuning/jobs", { json: { model: "local/tiny", training_file: file.id, suffix: "sums", method } }),
  );
  await using viewer = await watch(one);
  const at = () => viewer.adapters.get(job.id);
  await viewer.until(() => (at()?.step ?? 0) >= 3 && at()!.gradNorm !== null);
  expect(at()!.label).toStartWith("sums ");
  const { rows } = (await jsonOf(askPage(one, `/page/rows?adapter=${job.id}`))) as NonNullable<RowsAnswer>;
  expect(rows[0]!.some(({ isLearned, text }) => isLearned && /^\d+/.test(text))).toBe(true);
  await using other = await watch(two);
  expect(other.adapters.size).toBe(0);
  expect((await askPage(two, `/page/rows?adapter=${job.id}`)).status).toBe(404);
  expect((await askPage(two, "/page/control", { action: "pause", adapter: job.id })).status).toBe(404);

  const { key } = await jsonOf(askPage(one, "/page/link"));
  const view = linkOf(key);
  await using looking = await watch(view);
  expect([...looking.adapters.keys()]).toEqual([job.id]);
  expect((await askPage(view, "/page/control", { action: "pause", adapter: job.id })).status).toBe(403);
  for (const path of ["/v1/models", "/v1/files", "/v1/fine_tuning/jobs", "/v1/usage", "/metrics", "/page/link"])
    expect((await askPage(view, path)).status).toBe(403);
  expect((await askPage(view, `/v1/fine_tuning/jobs/${job.id}/cancel`, {})).status).toBe(403);

  expect((await askPage(one, "/page/control", { action: "pause", adapter: job.id })).status).toBe(200);
  await viewer.until(() => at()!.state === "paused");
  expect((await askPage(one, "/page/control", { action: "fork", adapter: job.id, name: "x", set: "" })).status).toBe(400);
  expect((await askPage(one, "/page/control", { action: "stop", adapter: job.id })).status).toBe(200);
  await viewer.until(() => at()!.state === "stopped");
  const asked = { prompt: "1 + 1?", models: ["local/tiny"], max_tokens: 4 };
  const answer = await (await askPage(one, "/page/answer", asked)).text();
  const direct = await jsonOf(
    server.ask("/v1/chat/completions", {
      json: { model: "local/tiny", messages: [{ role: "user", content: "1 + 1?" }], max_tokens: 4, temperature: 0 },
    }),
  );
  const pieces = answer.split("\n\n").flatMap((line) => (line.startsWith("data: {") ? [JSON.parse(line.slice(6))] : []));
  expect(pieces.map(({ text }) => text).join("")).toBe(direct.choices[0].message.content);
  server.running.kill("SIGTERM");
  await expect(viewer.until(() => false)).rejects.toThrow("the events have ended"); // so that pages do not hold it up
  expect((await server.running.ended).code).toBe(0);
});
