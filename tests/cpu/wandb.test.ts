// W&B's files of whole runs, one of them killed and resumed; scripts/nightly/tracking.ts has W&B's own program send them.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { historyIn, recordsOf, STEP } from "../../src/files/wandb.ts";
import { until } from "../helpers/bus.ts";
import { metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const ROWS = Array.from({ length: 8 }, (_, i) => JSON.stringify({ prompt: `What is ${i}?`, completion: `${i + 1}` })).join(
  "\n",
);
const recipe = (steps: number) => `[model]
path = "${place.model}"
[run]
output = "out"
device = "cpu"
tracking = ["wandb"]
checkpoint = { steps = 3 }
${["one", "two"].map((name) => `[[adapter]]\nname = "${name}"\nsteps = ${steps}\neval_every = 4\ndata = { train = "rows.jsonl", split = 0.25 }\n`).join("")}`;

/** Rows of an adapter's run, and the name of its file. */
function written(output: string, adapter: number) {
  const folders = readdirSync(join(output, "wandb")).sort();
  expect(folders).toHaveLength(2);
  const found = folders.map((folder) => {
    const [name] = readdirSync(join(output, "wandb", folder)).filter((of) => of.endsWith(".wandb"));
    const bytes = readFileSync(join(output, "wandb", folder, name!));
    const records = [...recordsOf(bytes)];
    expect(records.at(-1)!.end).toBe(bytes.length);
    const text = Buffer.from(records[1]!.payload).toString("latin1");
    const rows = records.map(({ payload }) => historyIn(payload)).filter((row) => row !== null);
    return { name: name!, folder, text, rows };
  });
  return found.find(({ text }) => text.includes(`name\x82\x01\x05"${["one", "two"][adapter]}"`))!;
}

test("a run that is killed and resumed has each row once, in one file of each adapter, which is sent anew", async () => {
  const path = place.project(recipe(100_000), { "rows.jsonl": ROWS });
  const output = join(path, "..", "out");
  const killed = place.start(["run", path]);
  await until("it steps", 60_000, () => existsSync(join(output, "checkpoints", "two")) && metrics(output, "step").length > 40);
  await until(
    "its rows are written",
    60_000,
    () => existsSync(join(output, "wandb")) && readdirSync(join(output, "wandb")).length === 2,
  );
  killed.kill("SIGKILL");
  await killed.ended;
  const before = written(output, 0);
  for (const mark of ["synced", "syncstate"]) writeFileSync(join(output, "wandb", before.folder, `${before.name}.${mark}`), "");
  const resumed = place.start(["run", path]);
  const last = metrics(output, "step").length;
  await until("it steps on", 60_000, () => metrics(output, "step").length > last + 20);
  resumed.kill("SIGTERM");
  expect((await resumed.ended).err).toContain("error[run.stopped]");
  for (const [i, name] of ["one", "two"].entries()) {
    const { rows } = written(output, i);
    const of = (key: string) => rows.filter((row) => key in row).map((row): unknown[] => [row[STEP], row[key]]);
    const lines = (type: "step" | "evaluation") =>
      metrics(output, type)
        .filter(({ adapter }) => adapter === name)
        .map(({ step, loss }) => [step, loss]);
    expect(of("train/loss")).toEqual(lines("step"));
    expect(of("eval/loss")).toEqual(lines("evaluation"));
    expect(rows.map((row) => row["_step"])).toEqual(rows.map((_, i) => i));
  }
  expect(written(output, 0).name).toBe(before.name);
  expect(readdirSync(join(output, "wandb", before.folder))).toEqual([before.name]);
}, 200_000);
