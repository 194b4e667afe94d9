// How long a run takes to its first step when its rows are kept as tokens: from the command to metrics.jsonl's first line,
// with a model so small that the rows are what it takes.
//
//   bun scripts/bench/cached-start.ts [--rows 10000000] [--rounds 3] [--folder FOLDER] [--mlora "COMMAND"] [--fresh] [--write]
//
// Rows are short texts of unequal lengths. They are tokenised once, by `mlora plan`, into a cache in FOLDER, which stays, so
// that a second call is quick. --fresh has each start tokenise them, and next to the first step gives the time until the run
// has ended, which is when all rows are read; none are held out. --write adds the table to docs/measurements/tokens.md.

import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { cpus, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { writeTinyModel } from "../../tests/helpers/model.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    rows: { type: "string", default: "10000000" },
    rounds: { type: "string", default: "3" },
    folder: { type: "string", default: join(tmpdir(), "mlora-cached-start") },
    mlora: { type: "string", default: `${process.execPath} ${join(ROOT, "src", "main.ts")}` },
    fresh: { type: "boolean", default: false },
    write: { type: "boolean", default: false },
  },
});
const PAGE = join(ROOT, "docs", "measurements", "tokens.md");
const rows = Number(values.rows);
const folder = join(values.folder, `${rows}`);
const file = join(folder, "rows.jsonl");

if (!existsSync(file)) {
  mkdirSync(folder, { recursive: true });
  writeTinyModel(join(folder, "model"));
  const rng = new Rng(0xca5e);
  const fd = openSync(`${file}.part`, "w");
  for (let from = 0; from < rows; from += 10_000)
    writeSync(
      fd,
      range(Math.min(10_000, rows - from))
        .map((i) => `{"text": "${from + i} ${"word ".repeat(1 + rng.below(6))}"}\n`)
        .join(""),
    );
  closeSync(fd);
  Bun.spawnSync(["mv", `${file}.part`, file]);
}
const recipe = (more: string) =>
  `[model]\npath = "model"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "a"\nsteps = 2\nmax_length = 64\n${more}`;
const KINDS = {
  "all rows": 'data = "rows.jsonl"\n',
  "a thousandth held out": 'data = { train = "rows.jsonl", split = 0.001 }\n',
} as const;
const env = { ...process.env, MLORA_CACHE: join(folder, "cache") };
const command = values.mlora.split(" ");

const forget = () => rmSync(env.MLORA_CACHE, { recursive: true, force: true });

/** Seconds until the first step of a run and until its end, and the process's largest memory in MiB at its first step. */
async function start(): Promise<{ readonly seconds: number; readonly whole: number; readonly mib: number }> {
  if (values.fresh) forget();
  const out = join(folder, "out");
  rmSync(out, { recursive: true, force: true });
  const begin = performance.now();
  const child = Bun.spawn([...command, "run", "recipe.toml"], { cwd: folder, env, stdout: "ignore", stderr: "pipe" });
  const metrics = join(out, "metrics.jsonl");
  for (; child.exitCode === null; await Bun.sleep(5)) {
    if (!existsSync(metrics) || !readFileSync(metrics, "utf8").includes('"type":"step"')) continue;
    const seconds = (performance.now() - begin) / 1000;
    const high = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))?.[1];
    if ((await child.exited) !== 0) throw new Error(await child.stderr.text());
    const whole = (performance.now() - begin) / 1000;
    return { seconds, whole, mib: Math.round(Number(high ?? Number.NaN) / 1024) };
  }
  throw new Error(`no step: ${await child.stderr.text()}`);
}

const spanOf = (all: readonly number[]): string => {
  const sorted = [...all].sort((a, b) => a - b).map((of) => of.toFixed(1));
  return sorted.length > 1 ? `${sorted[0]} to ${sorted.at(-1)}` : sorted[0]!;
};
async function starts() {
  const all: Awaited<ReturnType<typeof start>>[] = [];
  for (let round = 0; round < Number(values.rounds); round++) all.push(await start());
  return { all, first: spanOf(all.map(({ seconds }) => seconds)), mib: Math.max(...all.map(({ mib }) => mib)) };
}
const lineOf = (cells: readonly (string | number)[]): string => `| ${cells.join(" | ")} |`;

async function kept(): Promise<string[]> {
  const table = ["| rows | | plan, s | to the first step, s | memory, MiB |", "| ---: | --- | ---: | ---: | ---: |"];
  for (const [kind, more] of Object.entries(KINDS)) {
    writeFileSync(join(folder, "recipe.toml"), recipe(more));
    const plan = (): number => {
      const begin = performance.now();
      const planned = Bun.spawnSync([...command, "plan", "recipe.toml"], { cwd: folder, env });
      if (planned.exitCode !== 0) throw new Error(`${planned.stderr}`);
      return (performance.now() - begin) / 1000;
    };
    plan(); // tokenises
    const again = plan();
    const { first, mib } = await starts();
    table.push(lineOf([rows, kind, again.toFixed(1), first, mib]));
  }
  return table;
}

async function fresh(): Promise<string[]> {
  writeFileSync(join(folder, "recipe.toml"), recipe(KINDS["all rows"]));
  const { all, first, mib } = await starts();
  const line = lineOf([rows, first, spanOf(all.map(({ whole }) => whole)), mib]);
  return [
    "| rows, none kept | to the first step, s | to the end, s | memory at the first step, MiB |",
    "| ---: | ---: | ---: | ---: |",
    line,
  ];
}

const table = await (values.fresh ? fresh() : kept());
const { model } = cpus()[0]!;
const when = `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC: ${model.trim()}, ${cpus().length} cores, load ${loadavg()[0]!.toFixed(1)}.`;
console.log([when, "", ...table].join("\n"));
if (values.write) appendFileSync(PAGE, `\n${[when, "", ...table].join("\n")}\n`);
