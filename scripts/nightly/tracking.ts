// Whole runs, one of them killed and resumed, as the real programs read their files: TensorBoard and trackio; as W&B's own
// program sends them, to a server that answers as W&B's does; and as MLflow's own server has them, which is killed, too.
//
//   bun scripts/nightly/tracking.ts

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { historyAt, runsAt } from "../../tests/helpers/mlflow-run.ts";
import { writeTinyModel } from "../../tests/helpers/model.ts";
import { call, pythonWith } from "../golden/python.ts";
import { wandbServer } from "./wandb-server.ts";

const ROOT = join(import.meta.dir, "..", "..");
const MAIN = join(ROOT, "src", "main.ts");
const PACKAGES = ["tensorboard==2.21.0", "trackio==0.43.0", "tbparse==0.0.9", "wandb==0.31.0"];
const MLFLOW = ["mlflow==3.17.0"];

/** Prints {run: {tag: [[step, value], ...]}}. */
const READ = `
import json, os, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = {}
for run in sorted(os.listdir(sys.argv[1])):
    events = EventAccumulator(os.path.join(sys.argv[1], run), size_guidance={"scalars": 0})
    events.Reload()
    found[run] = {tag: [[of.step, of.value] for of in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps(found))
`;
/** Has trackio import all of them, and prints {run: [[step, training loss], ...]}. */
const IMPORT = `
import contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage
    trackio.import_tf_events(sys.argv[1], project="mlora")
    runs = {run: SQLiteStorage.get_logs("mlora", run) for run in SQLiteStorage.get_runs("mlora")}
found = {run: [[row["step"], row["train/loss"]] for row in rows if row.get("train/loss") is not None] for run, rows in runs.items()}
print(json.dumps(found))
`;

type Line = {
  readonly type: string;
  readonly adapter: string;
  readonly step: number;
  readonly loss: number;
  readonly grad_norm: number;
};
type Read = Readonly<Record<string, Readonly<Record<string, readonly (readonly [number, number])[]>>>>;

const work = mkdtempSync(join(tmpdir(), "mlora-tracking-"));
try {
  writeTinyModel(join(work, "model"));
  const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ prompt: `What is ${i} + 1?`, completion: `${i + 1}` }));
  writeFileSync(join(work, "rows.jsonl"), `${rows.join("\n")}\n`);
  const adapter = (name: string) =>
    `[[adapter]]\nname = "${name}"\ndata = { train = "rows.jsonl", split = 0.25 }\nsteps = 400\neval_every = 50\n`;
  const run =
    '[model]\npath = "model"\n[run]\noutput = "out"\ncheckpoint = { steps = 37 }\ntracking = ["tensorboard", "wandb", "mlflow"]\n';
  writeFileSync(join(work, "recipe.toml"), `${run}${adapter("one")}${adapter("two")}`);
  const port = freePort();
  let mlflow = await mlflowAt(work, port);
  const env = { ...process.env, MLFLOW_TRACKING_URI: `http://127.0.0.1:${port}` };
  const start = (...command: readonly string[]) =>
    Bun.spawn([process.execPath, MAIN, ...command], { cwd: work, stdout: "pipe", stderr: "pipe", env });
  const killed = start("run", "recipe.toml");
  const stepsMade = () => {
    try {
      return readFileSync(join(work, "out", "metrics.jsonl"), "utf8").split("\n").length;
    } catch {
      return 0;
    }
  };
  for (const until = Date.now() + 120_000; stepsMade() < 200; await Bun.sleep(20))
    if (Date.now() > until || killed.exitCode !== null) throw new Error(`the run did not get far: ${stepsMade()} lines`);
  killed.kill("SIGKILL");
  await killed.exited;
  const resumed = start("run", "recipe.toml");
  mlflow.kill("SIGKILL"); // it is away while the rest is trained
  await mlflow.exited;
  if ((await resumed.exited) !== 0) throw new Error(await new Response(resumed.stderr).text());
  const files = readdirSync(join(work, "out", "tb", "one"));
  if (files.length !== 2) throw new Error(`expected two event files of an adapter, found ${files.join(", ")}`);
  check(work);
  await sync(work);
  mlflow = await mlflowAt(work, port);
  const sent = start("sync", "out");
  if ((await sent.exited) !== 0) throw new Error(await new Response(sent.stderr).text());
  await checkMlflow(work, env.MLFLOW_TRACKING_URI);
  mlflow.kill();
  await mlflow.exited;
} finally {
  rmSync(work, { recursive: true, force: true });
}

function linesIn(folder: string): Line[] {
  const text = readFileSync(join(folder, "out", "metrics.jsonl"), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

function environment(packages = PACKAGES): string {
  return pythonWith({ script: "", makes: [], packages, tolerance: null }, join(ROOT, ".golden")).python;
}

function freePort(): number {
  const server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const { port } = server;
  server.stop(true);
  return port;
}

/** MLflow's server, with its store in the folder, once it answers. */
async function mlflowAt(folder: string, port: number) {
  const program = join(environment(MLFLOW), "..", "mlflow");
  const store = `sqlite:///${join(folder, "mlflow.db")}`;
  const child = Bun.spawn(
    [program, "server", "--host", "127.0.0.1", "--port", `${port}`, "--backend-store-uri", store, "--workers", "1"],
    {
      cwd: folder,
      stdout: "ignore",
      stderr: "ignore",
      env: { ...process.env, MLFLOW_DISABLE_TELEMETRY: "true", DO_NOT_TRACK: "true" },
    },
  );
  for (const until = Date.now() + 120_000; ; await Bun.sleep(200)) {
    const health = await fetch(`http://127.0.0.1:${port}/health`).catch(() => null);
    if (health?.ok) return child;
    if (Date.now() > until || child.exitCode !== null) throw new Error("MLflow's server does not start");
  }
}

/** Each number once, in one run of each adapter, though both the run and the server were killed. */
async function checkMlflow(folder: string, url: string): Promise<void> {
  const runs = await runsAt(url, "mlora");
  if (runs.length !== 2) throw new Error(`expected two runs in MLflow, found ${runs.length}`);
  let compared = 0;
  for (const run of runs) {
    const { run_name: name, status } = run.info;
    const rank = run.data.params?.find(({ key }) => key === "rank")?.value;
    if (status !== "FINISHED" || rank !== "16") throw new Error(`${name} in MLflow: ${status}, rank ${rank}`);
    for (const [key, type] of [
      ["train/loss", "step"],
      ["eval/loss", "evaluation"],
    ] as const) {
      const expected = linesIn(folder).filter((line) => line.type === type && line.adapter === name);
      const found = await historyAt(url, run, key);
      if (JSON.stringify(found) !== JSON.stringify(expected.map(({ step, loss }) => [step, loss])))
        throw new Error(`${name} ${key}: ${found.length} values in MLflow, ${expected.length} in metrics.jsonl`);
      compared += found.length;
    }
  }
  console.log(`tracking: MLflow's server has ${compared} values once, as in metrics.jsonl, though it and the run were killed`);
}

function check(folder: string): void {
  const python = environment();
  const lines = linesIn(folder);
  const read: Read = JSON.parse(call([python, "-c", READ, join(folder, "out", "tb")], folder));
  let compared = 0;
  for (const name of ["one", "two"])
    for (const [tag, type, key] of [
      ["train/loss", "step", "loss"],
      ["train/grad_norm", "step", "grad_norm"],
      ["eval/loss", "evaluation", "loss"],
    ] as const) {
      const expected = lines
        .filter((line) => line.type === type && line.adapter === name)
        .map((line) => [line.step, Math.fround(line[key])]);
      // The evaluation at the step of the checkpoint is made again, to the same number.
      const found = read[name]![tag]!.filter(([step], i, all) => step !== all[i - 1]?.[0]).map(([step, value]) => [
        step,
        Math.fround(value),
      ]);
      if (JSON.stringify(found) !== JSON.stringify(expected))
        throw new Error(`${name} ${tag}: ${found.length} values in TensorBoard, ${expected.length} in metrics.jsonl`);
      compared += found.length;
    }
  console.log(`tracking: ${compared} values are the same in TensorBoard and in metrics.jsonl, also where the run was killed`);
  const home = { TRACKIO_DIR: join(folder, "trackio"), HF_HOME: join(folder, "hf"), HF_HUB_OFFLINE: "1" };
  const imported: Readonly<Record<string, readonly (readonly [number, number])[]>> = JSON.parse(
    call([python, "-c", IMPORT, join(folder, "out", "tb")], folder, home),
  );
  for (const name of ["one", "two"]) {
    const found = Object.entries(imported).find(([run]) => run.includes(name))?.[1] ?? [];
    const steps = new Set(found.map(([step]) => step));
    if (steps.size !== 400) throw new Error(`${name}: expected the losses of 400 steps in trackio, found ${steps.size}`);
  }
  console.log("tracking: trackio imports the losses of all steps");
}

/** Twice: what was sent already is sent again with --include-synced, to the same rows. */
async function sync(folder: string): Promise<void> {
  const program = join(environment(), "..", "wandb");
  using server = wandbServer();
  const runs = readdirSync(join(folder, "out", "wandb")).map((name) => join(folder, "out", "wandb", name));
  const env = { ...process.env, HOME: folder, WANDB_BASE_URL: server.url, WANDB_API_KEY: "a".repeat(40) };
  for (const again of [false, true]) {
    const flags = again ? ["--include-synced"] : [];
    const child = Bun.spawn([program, "sync", "--yes", ...flags, ...runs], {
      cwd: folder,
      env,
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    if (code !== 0) throw new Error(`W&B's sync ended with ${code}: ${out}${err}`);
    const sent = [...server.runs.values()];
    for (const name of ["one", "two"]) {
      const { variables, lines, exitCode } = sent.find((run) => run.variables["displayName"] === name)!;
      const config = JSON.parse(`${variables["config"]}`);
      if (config.rank.value !== 16 || variables["project"] !== "mlora" || variables["groupName"] !== "out" || exitCode !== 0)
        throw new Error(`${name}: ${JSON.stringify(variables)}, exit code ${exitCode}`);
      const rows: Record<string, number>[] = lines.map((line) => JSON.parse(line));
      for (const [key, type] of [
        ["train/loss", "step"],
        ["eval/loss", "evaluation"],
      ] as const) {
        const expected = linesIn(folder).filter((line) => line.type === type && line.adapter === name);
        const found = rows.filter((row) => key in row).map((row) => [row["train/global_step"], row[key]]);
        if (JSON.stringify(found) !== JSON.stringify(expected.map(({ step, loss }) => [step, loss])))
          throw new Error(`${name} ${key}: ${found.length} rows in W&B, ${expected.length} in metrics.jsonl`);
      }
    }
  }
  console.log("tracking: W&B's own program sends each row once, with its run's settings and end");
}
