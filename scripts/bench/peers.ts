// mlora, the build before, PEFT, Unsloth and transformers in one call, on this machine: training, generation, starting.
//
//   scripts/bench/peers [CASE ..] [--before COMMAND] [--unsloth FROM] [--wheels FOLDER] [--python PATH] [--mlora COMMAND]
//                       [--programs "mlora PEFT"] [--on "GPU CPU"] [--seconds 20] [--rounds 1] [--limit 300] [--within N]
//                       [--ahead] [--file FILE] [--write]
//   scripts/bench/peers --add FILE
//
// Cases are those of compared/cases.ts, all that this machine has a device for unless named. The programs take turns, a process
// each, measured for --seconds at least after some steps that are not; each measurement ends after --limit seconds, and none is
// begun after --within. A program that cannot run is named with its error, and the others are measured. --ahead prepares all
// cases of a peer at once before it measures one after the other, which takes less time and more memory: one round, programs
// in the order of --programs, without --within.
//
// PEFT and transformers come from --python (python3), with --wheels also from a folder of wheels, installed without a network.
// Unsloth needs a GPU and its packages: --unsloth says where from, a folder of wheels, a tar of unsloth_bundle.py, or
// "-r scripts/bench/unsloth.txt" for pip. --before is the build before, as a command.
//
// Rows go to --file, a CSV, docs/measurements/peers.csv with --write; --add takes those of another machine's file. Both make
// the tables of README.md and docs/measurements/peers.md anew. Fails where mlora itself has failed.

import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { now } from "../../src/base/clock.ts";
import { measureAhead } from "./compared/ahead.ts";
import { CASES, PROGRAMS, type Program } from "./compared/cases.ts";
import { measureCase } from "./compared/measure.ts";
import { formatRow, HEAD, parseRows, type Row } from "./compared/results.ts";
import { siteOf } from "./compared/sites.ts";
import { measuredTables, placed, readmeTables } from "./compared/tables.ts";
import { commit, date } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const HISTORY = join(ROOT, "docs", "measurements", "peers.csv");
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    before: { type: "string" },
    python: { type: "string", default: "python3" },
    wheels: { type: "string" },
    unsloth: { type: "string" },
    programs: { type: "string", default: PROGRAMS.join(" ") },
    on: { type: "string" },
    seconds: { type: "string", default: "20" },
    rounds: { type: "string", default: "1" },
    limit: { type: "string", default: "300" },
    within: { type: "string", default: "Infinity" },
    ahead: { type: "boolean", default: false },
    file: { type: "string" },
    add: { type: "string" },
    write: { type: "boolean", default: false },
  },
});

function known<T extends string>(what: string, given: readonly string[], all: readonly T[]): T[] {
  const unknown = given.filter((name) => !all.includes(name as T));
  if (unknown.length > 0) throw new Error(`no ${what} is called ${unknown.join(", ")}; there are: ${all.join("; ")}`);
  return given as T[];
}

function natural(name: "seconds" | "rounds" | "limit"): number {
  const found = Number(values[name]);
  if (!Number.isInteger(found) || found < 1)
    throw new Error(`expected a whole number from 1 on as --${name}, found '${values[name]}'`);
  return found;
}

/** The rows of a file and these, which it has from now on. A damaged file is not made longer. */
function append(file: string, rows: readonly Row[]): Row[] {
  if (!existsSync(file)) writeFileSync(file, `${HEAD}\n`);
  const earlier = parseRows(readFileSync(file, "utf8"));
  if (rows.length > 0) appendFileSync(file, `${rows.map(formatRow).join("\n")}\n`);
  return [...earlier, ...rows];
}

function writeTables(): void {
  const rows = parseRows(readFileSync(HISTORY, "utf8"));
  for (const [page, table] of [
    ["README.md", readmeTables(rows)],
    [join("docs", "measurements", "peers.md"), measuredTables(rows)],
  ] as const) {
    const file = join(ROOT, page);
    writeFileSync(file, placed(readFileSync(file, "utf8"), table));
  }
}

const gpu = (): string | null => {
  try {
    const { exitCode, stdout } = Bun.spawnSync(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]);
    return exitCode === 0 ? (stdout.toString().trim().split("\n")[0] ?? null) : null;
  } catch {
    return null; // there is no nvidia-smi
  }
};

/** How a program is called in the history: of a build what it says of itself. */
function versionOf(command: readonly string[] | null): string {
  if (command === null) return "";
  const { exitCode, stdout } = Bun.spawnSync([...command, "--version"], { stdin: "ignore" });
  return exitCode === 0 ? stdout.toString().trim() : "";
}

/** Its environment, and why it cannot run; both are found once. */
function sites(python: readonly string[]) {
  const made = (from: string | undefined): { readonly site: string | null; readonly why: string | null } => {
    if (from === undefined) return { site: null, why: null };
    try {
      return { site: siteOf(from, python), why: null };
    } catch (error) {
      return { site: null, why: (error as Error).message };
    }
  };
  const wheels = made(values.wheels);
  const unsloth = values.unsloth === undefined ? { site: null, why: "no --unsloth was given" } : made(values.unsloth);
  const own: readonly Program[] = ["mlora", "before"];
  const of = (program: Program) => (program === "Unsloth" ? [unsloth, wheels] : own.includes(program) ? [] : [wheels]);
  return {
    environment: (program: Program) => {
      const path = [
        ...of(program).flatMap(({ site }) => site ?? []),
        ...(process.env["PYTHONPATH"] ? [process.env["PYTHONPATH"]] : []),
      ];
      return path.length === 0 ? {} : { PYTHONPATH: path.join(":"), TOKENIZERS_PARALLELISM: "false" };
    },
    hindered: (program: Program) => of(program).find(({ why }) => why !== null)?.why ?? null,
  };
}

async function measureAll(): Promise<readonly Row[]> {
  const began = now();
  const device = gpu();
  const on = known("device", values.on?.split(" ") ?? ["CPU", ...(device === null ? [] : ["GPU"])], ["GPU", "CPU"]);
  const named = known(
    "case",
    positionals,
    CASES.map(({ name }) => name),
  );
  const programs = known("program", values.programs.split(" "), PROGRAMS);
  const tools = {
    mlora: values.mlora.split(" "),
    before: values.before?.split(" ") ?? null,
    python: [values.python],
    seconds: natural("seconds"),
  };
  const options = {
    ...{ tools, programs, rounds: natural("rounds"), limit: natural("limit"), ...sites(tools.python) },
    versions: { mlora: versionOf(tools.mlora), before: versionOf(tools.before) },
    about: { date: date(), commit },
    machine: (where: "GPU" | "CPU") =>
      where === "GPU" ? (device ?? "no GPU") : `${cpus()[0]?.model ?? "CPU"}, ${cpus().length} cores`,
    say: (line: string) => console.log(line),
  };
  const file = values.file ?? (values.write ? HISTORY : null);
  const all: Row[] = [];
  const cases = CASES.filter(({ name, on: where }) => (named.length > 0 ? named.includes(name) : on.includes(where)));
  if (values.ahead) {
    if (values.rounds !== "1" || values.within !== "Infinity") throw new Error("--ahead is one round, and has no --within");
    await measureAhead(cases, options, (row) => {
      if (file !== null) append(file, [row]);
      all.push(row);
    });
    return all;
  }
  for (const of of cases) {
    if (now() - began > 1000 * Number(values.within)) {
      console.log(`not begun, it is late: ${of.name}`);
      continue;
    }
    const rows = await measureCase(of, options);
    if (file !== null) append(file, rows); // at once: a call may be ended
    all.push(...rows);
  }
  return all;
}

if (values.add !== undefined) {
  append(HISTORY, parseRows(readFileSync(values.add, "utf8")));
  writeTables();
} else {
  const rows = await measureAll();
  console.log(`\n${measuredTables(rows)}`);
  if (values.write) writeTables();
  const failed = rows.filter(({ program, error }) => program === "mlora" && error !== "");
  if (failed.length > 0) throw new Error(`mlora failed: ${failed.map((row) => `${row.case}: ${row.error}`).join("\n")}`);
}
