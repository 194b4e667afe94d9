// A history of speed and memory, written and compared by command: docs/measurements/history.csv.
//
//   bun scripts/bench/history.ts record [--mlora COMMAND] [--against COMMAND] [--as NAME] [--rounds 3] [-- FLAGS OF bench]
//   bun scripts/bench/history.ts add LINES [--file FILE] [--tolerance 0.03] [--comment FILE] [--as NAME]
//   bun scripts/bench/history.ts compare [--file FILE] [--tolerance 0.05] [--comment FILE]
//
// `record` appends the medians of the rounds. With --against another build takes turns with this one, a fresh process each
// time, and the row has the median of the rounds' ratios: on a machine that others use, the only number that counts. --as says
// what that build is. `add` appends what rounds.py has printed into the file LINES (scripts/bench/host calls it), and compares
// these rows. `compare` prints how the newest row of each machine, shape and settings differs (history/changes.ts says from
// what). Both fail where one is worse by more than the tolerance; --comment writes the comparison as Markdown, too.

import { appendFileSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type Change, changes, comment, linesOf, verdictsOf } from "./history/changes.ts";
import { parseReport, type Report, rowOf, rowsOf } from "./history/measured.ts";
import { formatRow, HEAD, keyOf, parseRows, type Row } from "./history/rows.ts";
import { commit, date } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");

/** Flags of `mlora bench` that change what is computed and are not in its report. */
const SAID = ["--method", "--precision", "--link", "--tokens", "--checkpoint"];

function measure(command: string, flags: readonly string[]): Report {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command.split(" "), "bench", ...flags, "--json"], { cwd: ROOT });
  if (exitCode !== 0) throw new Error(`${command} bench ended with ${exitCode}: ${stderr.toString().trim()}`);
  return parseReport(JSON.parse(stdout.toString()));
}

/** The rows there were; these ones follow them. A damaged file is not made longer. */
function append(file: string, rows: readonly Row[]): Row[] {
  if (!existsSync(file)) writeFileSync(file, `${HEAD}\n`);
  const kept = readFileSync(file, "utf8");
  const earlier = parseRows(kept);
  appendFileSync(file, `${kept.endsWith("\n") ? "" : "\n"}${rows.map(formatRow).join("\n")}\n`);
  return earlier;
}

function record(mlora: string, against: string | undefined, name: string, rounds: number, flags: readonly string[]): void {
  const [own, other]: [Report[], Report[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    const turns = [() => own.push(measure(mlora, flags)), () => against !== undefined && other.push(measure(against, flags))];
    for (const turn of round % 2 === 0 ? turns : turns.toReversed()) turn();
  }
  const said = SAID.flatMap((flag) => (flags.includes(flag) ? [`${flag.slice(2)} ${flags[flags.indexOf(flag) + 1]}`] : []));
  const row = rowOf({ own, against: other, peer: [] }, { date: date(), commit, against: name, versions: "", said });
  append(values.file, [row]);
  console.log(formatRow(row));
}

/** Prints them; the exit code. */
function judge(all: readonly Change[], tolerance: number): number {
  for (const change of all) for (const line of linesOf(change, tolerance)) console.log(line);
  const worse = all.filter((change) => verdictsOf(change, tolerance) === "worse").length;
  console.log(`history: ${all.length} compared, ${worse} refused`);
  if (values.comment !== undefined) writeFileSync(values.comment, comment(all, tolerance));
  return worse === 0 ? 0 : 1;
}

function add(path: string, tolerance: number): number {
  const rows = rowsOf(readFileSync(path, "utf8"), { date: date(), commit }, values.as);
  const earlier = append(values.file, rows);
  const keys = new Set(rows.map(keyOf));
  return judge(changes([...earlier, ...rows].filter((row) => keys.has(keyOf(row)))), tolerance);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    against: { type: "string" },
    as: { type: "string" },
    rounds: { type: "string", default: "3" },
    tolerance: { type: "string" },
    file: { type: "string", default: join(ROOT, "docs", "measurements", "history.csv") },
    comment: { type: "string" },
  },
});
const [mode, ...rest] = positionals;
const [rounds, tolerance] = [Number(values.rounds), Number(values.tolerance ?? (mode === "add" ? "0.03" : "0.05"))];
if (!(Number.isInteger(rounds) && rounds > 0)) throw new Error(`expected a whole number of rounds, found '${values.rounds}'`);
if (!(tolerance >= 0)) throw new Error(`expected a share as tolerance (0.05 is 5 %), found '${values.tolerance}'`);
if (mode === "record") record(values.mlora, values.against, values.as ?? values.against ?? "", rounds, rest);
else if (mode === "compare" && rest.length === 0)
  process.exit(judge(changes(parseRows(readFileSync(values.file, "utf8"))), tolerance));
else if (mode === "add" && rest.length === 1) process.exit(add(rest[0]!, tolerance));
else throw new Error(`expected record, add or compare, found '${positionals.join(" ")}'`);
