// Runs that send to a server that answers as MLflow's does: killed and resumed, without a server, with one that is silent;
// scripts/nightly/tracking.ts has the real one.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { keyOf } from "../../src/session/trackers/mlflow-sender.ts";
import { until } from "../helpers/bus.ts";
import { historyAt, runsAt } from "../helpers/mlflow-run.ts";
import { MlflowTestServer } from "../helpers/mlflow-server.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const recipe = (steps: number, more = "") => `[model]
path = "${place.model}"
[run]
output = "out"
device = "cpu"
tracking = ["mlflow"]
checkpoint = { steps = 3 }
${["one", "two"].map((name, i) => `[[adapter]]\nname = "${name}"\nrank = ${[4, 7][i]}\nsteps = ${steps}\neval_every = 4\ndata = { train = "rows.jsonl", split = 0.25 }\n`).join("")}${more}`;
const project = (steps: number, more?: string) => place.project(recipe(steps, more), { "rows.jsonl": sums(8) });
const lines = (output: string, type: string, adapter: string) =>
  metrics(output, type)
    .filter((line) => line["adapter"] === adapter)
    .map(({ step, loss }) => [step, loss]);

/** Each number of a run once, as its metrics have it. */
async function expectAll(url: string, output: string, experiment = "mlora"): Promise<void> {
  const runs = await runsAt(url, experiment);
  expect(runs.map(({ info }) => info.run_name).sort()).toEqual(["one", "two"]);
  for (const run of runs) {
    const name = run.info.run_name;
    const made = lines(output, "step", name);
    expect(made.length).toBeGreaterThan(0);
    expect<unknown[]>(await historyAt(url, run, "train/loss")).toEqual(made);
    expect<unknown[]>(await historyAt(url, run, "eval/loss")).toEqual(lines(output, "evaluation", name));
    for (const key of ["train/learning_rate", "train/tokens_per_second", "train/grad_norm"])
      expect(await historyAt(url, run, key)).toHaveLength(made.length);
  }
}

test("a run that is killed and resumed has each number once, in one run of each adapter", async () => {
  using server = new MlflowTestServer("Bearer hush");
  const path = project(100_000);
  const output = join(path, "..", "out");
  const environment = { MLFLOW_TRACKING_URI: server.url, MLFLOW_TRACKING_TOKEN: "hush" };
  const killed = place.start(["run", path], environment);
  await until(
    "its numbers come",
    180_000,
    () => server.runs.length === 2 && server.runs.every(({ metrics }) => metrics.size > 20),
  );
  await until("both are saved", 60_000, () => ["one", "two"].every((name) => existsSync(join(output, "checkpoints", name))));
  killed.kill("SIGKILL");
  await killed.ended;
  const last = metrics(output, "step").length;
  const resumed = place.start(["run", path], environment);
  await until("it steps on", 60_000, () => metrics(output, "step").length > last + 20);
  resumed.kill("SIGTERM");
  const { err } = await resumed.ended;
  expect(err).toContain("error[run.stopped]");
  expect(err).not.toContain("MLflow");
  expect(server.runs.map(({ info }) => info.status)).toEqual(["KILLED", "KILLED"]);
  expect(server.runs.map(({ params }) => params.get("rank")).sort()).toEqual(["4", "7"]);
  const all = server.runs.map(({ metrics: of }) => [...of.values()].filter(({ key }) => key === "train/loss"));
  for (const [i, { info }] of server.runs.entries())
    expect<unknown[]>(all[i]!.map(({ step, value }) => [step, value])).toEqual(lines(output, "step", info.run_name));
}, 300_000);

test("without an address, or a server at it, the run is the same, and sync sends it later, once", async () => {
  const path = project(6);
  const output = join(path, "..", "out");
  const free = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
  const { port } = free;
  await free.stop(true);
  const gone = `http://me:secret@127.0.0.1:${port}`;
  const { code, err } = await place.start(["run", path], { MLFLOW_TRACKING_URI: gone }).ended;
  expect(code).toBe(0);
  expect(err).toContain(`127.0.0.1:${port}`);
  expect(err).toContain(`mlora sync ${output}`);
  expect(err + readFileSync(join(output, "mlflow", "rows.jsonl"), "utf8")).not.toContain("secret");
  const away = await place.start(["sync", output], { MLFLOW_TRACKING_URI: gone }).ended;
  expect([away.code, away.err]).toEqual([1, expect.stringContaining("error[http.failed]")]);
  const basic = `Basic ${Buffer.from("me:secret").toString("base64")}`;
  {
    using server = new MlflowTestServer(basic, port);
    server.away = 503;
    expect((await place.start(["sync", output], { MLFLOW_TRACKING_URI: gone }).ended).err).toContain("error[mlflow.failed]");
    server.away = null;
    const sent = await place.start(["sync", output], { MLFLOW_TRACKING_URI: gone }).ended;
    expect([sent.code, sent.out]).toEqual([0, expect.stringMatching(/^sent \d+ lines to MLflow at http:\/\/127/)]);
    const again = await place.start(["sync", output], { MLFLOW_TRACKING_URI: gone }).ended;
    expect(again.out).toContain("has all of this run");
    expect(server.runs.map(({ info }) => info.status)).toEqual(["FINISHED", "FINISHED"]);
  }
  // another server gets all of it
  using other = new MlflowTestServer();
  const environment = { MLFLOW_TRACKING_URI: `${other.url}/`, MLFLOW_EXPERIMENT_NAME: "sums" };
  expect((await place.start(["sync", output], environment).ended).code).toBe(0);
  await expectAll(other.url, output, "sums");
}, 300_000);

test("a server that never answers holds up no run, and one that refuses an adapter gets the others", async () => {
  using server = new MlflowTestServer();
  server.away = "silent";
  const path = project(5);
  const output = join(path, "..", "out");
  const environment = { MLFLOW_TRACKING_URI: server.url };
  const { code, err } = await place.start(["run", path], environment).ended;
  expect([code, err]).toEqual([0, expect.stringContaining("MLflow takes too long")]);
  expect(server.asked.length).toBeGreaterThan(0);
  server.away = null;
  expect((await place.start(["sync", output], environment).ended).code).toBe(0);
  await expectAll(server.url, output);

  using deleting = new MlflowTestServer();
  const longer = project(100_000);
  const run = place.start(["run", longer], { MLFLOW_TRACKING_URI: deleting.url });
  await until("both are there", 120_000, () => deleting.runs.length === 2);
  const [gone, left] = deleting.runs;
  gone!.isDeleted = true;
  const before = left!.metrics.size;
  await until("the other gets more", 120_000, () => left!.metrics.size > before + 100);
  run.kill("SIGTERM");
  const ended = await run.ended;
  expect(ended.err).toContain(`the run of ${gone!.info.run_name} there gets nothing more`);
  expect([gone!.info.status, left!.info.status]).toEqual(["RUNNING", "KILLED"]);
}, 300_000);

test("no address is said, a wrong one is refused before anything is done, and a secret goes nowhere in the clear", async () => {
  const path = project(2);
  const output = join(path, "..", "out");
  for (const [uri, more, says] of [
    ["sqlite:///mlflow.db", {}, "expected an http or https address"],
    ["http://mlflow.example:5000", { MLFLOW_TRACKING_TOKEN: "hush" }, "without encryption"],
  ] as const) {
    const { code, err } = await place.start(["run", path], { MLFLOW_TRACKING_URI: uri, ...more }).ended;
    expect([code, err]).toEqual([2, expect.stringContaining(says)]);
    expect(existsSync(output)).toBe(false);
  }
  const { code, err } = await place.start(["run", path], { MLFLOW_TRACKING_URI: "" }).ended;
  expect([code, err]).toEqual([0, expect.stringContaining(`MLFLOW_TRACKING_URI is not set: \`mlora sync ${output}\``)]);
  const { code: none, err: why } = await place.start(["sync", place.root]).ended;
  expect([none, why]).toEqual([2, expect.stringContaining("error[sync.none]")]);
});

test("names that MLflow would refuse", () => {
  expect(["train/loss", "eval/f1@5", "eval/a//b", "eval/../x", "eval/", "eval/p.5"].map(keyOf)).toEqual([
    ...["train/loss", "eval/f1_5", "eval/a/_/b", "eval/_/x", "eval/_", "eval/p.5"],
  ]);
});
