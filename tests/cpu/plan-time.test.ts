// What `mlora plan` says of time and money, and what a run says of it afterwards.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readRun } from "../../src/files/record.ts";
import { evaluationsOf, operationsOf } from "../../src/plan/operations.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { planOf } from "../../src/session/planning/planned-run.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { PROGRAM } from "../helpers/program.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-time-"));
const at = (name: string) => join(root, name);
const recipe = (output: string, steps: number) => `[model]\npath = "model"\n[run]\noutput = "${output}"\ndevice = "cpu"\n
[[adapter]]\nname = "often"\ndata = { train = "rows.jsonl", split = 0.25 }\nsteps = ${steps}\nbatch_size = 2\neval_every = 3
[[adapter]]\nname = "never"\ndata = "rows.jsonl"\nsteps = ${2 * steps}\nbatch_size = 3\n`;
beforeAll(() => {
  writeTinyModel(at("model"));
  const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ prompt: `What is ${i} + 1?`, completion: `${i + 1}` }));
  writeFileSync(at("rows.jsonl"), `${rows.join("\n")}\n`);
  writeFileSync(at("long.toml"), recipe("long", 100_000));
  writeFileSync(at("short.toml"), recipe("short", 7));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function mlora(...args: string[]) {
  const env = { ...process.env, MLORA_CACHE: at("cache") };
  const child = Bun.spawn([...PROGRAM, ...args], { cwd: root, env, stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}
const timeOf = async (...args: string[]) => JSON.parse((await mlora("plan", ...args, "--json")).out).time;

test("a plan estimates, measures and then knows; nothing is left of the steps that it made", async () => {
  const estimated = await timeOf("long.toml", "--price", "3");
  expect(estimated.basis).toBe("estimated");
  expect(estimated.price).toBeCloseTo((3 * estimated.seconds) / 3600, 6);
  const measured = await timeOf("long.toml", "--measure");
  expect(measured.basis).toBe("measured");
  expect(measured.seconds).toBeGreaterThan(0);
  expect(readdirSync(root).sort()).toEqual(["cache", "long.toml", "model", "rows.jsonl", "short.toml"]);
  const earlier = await timeOf("long.toml");
  expect([earlier.basis, earlier.seconds]).toEqual(["earlier", expect.closeTo(measured.seconds, 6)]);
  const { out } = await mlora("plan", "long.toml", "--price", "3");
  expect(out).toMatch(/^time: about .*, of which evaluations .* a step, [\d,]+ tokens\/s$/m);
  expect(out).toMatch(/^price: about \d+\.\d\d at 3\.00 an hour$/m);
  const bad = await mlora("plan", "long.toml", "--price", "cheap");
  expect([bad.code, bad.err]).toEqual([2, expect.stringContaining("--price is cheap")]);
  const brief = await mlora("plan", "short.toml", "--measure");
  expect(brief.code === 0 || brief.err.includes("error[plan.measure]")).toBe(true);
});

test("a run says the truth next to what was expected, and evaluates as often as was counted", async () => {
  const { plan } = await planOf(loadRecipe(at("short.toml")));
  const run = await mlora("run", "short.toml");
  expect([run.code, run.err]).toEqual([0, expect.not.stringContaining("error[")]);
  expect(run.out).toMatch(/[\d,]+ tokens in .* s, .* were expected, [\d,]+ tokens\/s/);
  const { time } = readRun(at("short"));
  expect(time!.tokens).toBe(plan.adapters.reduce((sum, { tokens }) => sum + tokens, 0));
  expect(time!.tokens_per_second).toBeCloseTo(time!.tokens / time!.seconds, 6);
  expect([time!.basis, time!.estimated_seconds]).toEqual([expect.any(String), expect.any(Number)]);
  const lines = readFileSync(at("short/metrics.jsonl"), "utf8").trim().split("\n");
  for (const adapter of plan.adapters) {
    const found = lines.map((line) => JSON.parse(line)).filter((of) => of.type === "evaluation" && of.adapter === adapter.name);
    expect(evaluationsOf(adapter), adapter.name).toBe(found.length);
  }
});

test("operations grow with steps, evaluations and recomputation", async () => {
  const { plan } = await planOf(loadRecipe(at("short.toml")));
  const { training, evaluation } = operationsOf(plan, [[8, 8], []]);
  const long = operationsOf((await planOf(loadRecipe(at("long.toml")))).plan, [[8, 8], []]);
  expect(long.training / training).toBeGreaterThan(1000);
  expect(operationsOf(plan, [[8, 8, 8, 8], []]).evaluation).toBeCloseTo(2 * evaluation, 0);
  const [stage] = plan.stages;
  const full = { ...plan, stages: [{ ...stage!, sizes: { ...stage!.sizes, recomputation: "full" as const } }] };
  expect(operationsOf(full, []).training).toBeGreaterThan(1.2 * training);
});
