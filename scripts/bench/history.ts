// A history of speed and memory, written and compared by command: docs/measurements/history.csv.
//
//   bun scripts/bench/history.ts record [--mlora COMMAND] [--against COMMAND] [--as NAME] [--rounds 3] [-- FLAGS OF bench]
//   bun scripts/bench/history.ts compare [--tolerance 0.05]
//
// `record` appends the medians of the rounds. With --against another build takes turns with this one, a fresh process each
// time, and the row has the median of the rounds' ratios: on a machine that others use, the only number that counts. --as says
// what that build is. `compare` prints how the newest row of each machine, shape and settings differs: from the build of the
// same call, or without one from the row before. It fails where one is slower, or takes more memory, by more than the
// tolerance.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { changes, formatRow, HEAD, parseRows, percent, type Row, refusal } from "./history/rows.ts";
import { commit, date } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const FILE = join(ROOT, "docs", "measurements", "history.csv");
const MIB = 2 ** 20;

type Report = Readonly<Record<"shape" | "device" | "compute" | "recomputation", string>> &
  Readonly<
    Record<"adapters" | "rows" | "length" | "rank" | "dropout" | "tokens_per_s" | "device_bytes" | "peak_rss_bytes", number>
  > & {
    readonly targets: readonly string[];
    readonly stages: readonly { readonly layers: number }[];
  };
/** Flags of `mlora bench` that change what is computed and are not in its report. */
const SAID = ["--method", "--precision", "--link", "--tokens", "--checkpoint"];

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(values.length - 1) >> 1]! + sorted[values.length >> 1]!) / 2;
}

function settingsOf(report: Report, flags: readonly string[]): string {
  const { adapters, rows, length, rank, dropout, targets, compute, recomputation, stages } = report;
  const said = SAID.flatMap((flag) => (flags.includes(flag) ? [`${flag.slice(2)} ${flags[flags.indexOf(flag) + 1]}`] : []));
  return [
    `${adapters} x ${rows} x ${length}`,
    `rank ${rank}`,
    targets.map((name) => name.replace("_proj", "")).join(" "),
    `dropout ${dropout}`,
    compute,
    recomputation,
    `layers ${stages.map(({ layers }) => layers).join(" ")}`,
    ...said,
  ].join(", ");
}

function measure(command: string, flags: readonly string[]): Report {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command.split(" "), "bench", ...flags, "--json"], { cwd: ROOT });
  if (exitCode !== 0) throw new Error(`${command} bench ended with ${exitCode}: ${stderr.toString().trim()}`);
  return JSON.parse(stdout.toString());
}

function record(mlora: string, against: string | undefined, name: string, rounds: number, flags: readonly string[]): void {
  const [own, other]: [Report[], Report[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    const turns = [() => own.push(measure(mlora, flags)), () => against !== undefined && other.push(measure(against, flags))];
    for (const turn of round % 2 === 0 ? turns : turns.toReversed()) turn();
  }
  const speeds = own.map((report) => report.tokens_per_s);
  const speed = median(speeds);
  const largest = (key: "device_bytes" | "peak_rss_bytes") => Math.round(Math.max(...own.map((report) => report[key])) / MIB);
  const row: Row = {
    date: date(),
    commit,
    machine: own[0]!.device,
    shape: own[0]!.shape,
    settings: settingsOf(own[0]!, flags),
    rounds,
    tokens_per_s: speed,
    range: `${Math.min(...speeds)} to ${Math.max(...speeds)}`,
    device_mib: largest("device_bytes"),
    rss_mib: largest("peak_rss_bytes"),
    against: against === undefined ? "" : name,
    ratio: against === undefined ? null : Number(median(speeds.map((of, i) => of / other[i]!.tokens_per_s)).toFixed(3)),
  };
  const kept = existsSync(FILE) ? readFileSync(FILE, "utf8") : `${HEAD}\n`;
  parseRows(kept); // a damaged file is not made longer
  writeFileSync(FILE, `${kept.trimEnd()}\n${formatRow(row)}\n`);
  console.log(formatRow(row));
}

function compare(tolerance: number): number {
  const all = changes(parseRows(readFileSync(FILE, "utf8")));
  let refused = 0;
  for (const change of all) {
    const { now, before, speed, memory } = change;
    const why = refusal(change, tolerance);
    if (why !== null) refused++;
    const than = now.ratio !== null ? now.against : (before?.commit ?? "nothing before");
    const signed = (share: number | null) => (share === null ? "-" : `${share < 0 ? "" : "+"}${percent(share)}`);
    console.log(
      `${why === null ? "ok  " : "FAIL"}  ${now.machine}, ${now.shape}, ${now.settings}: ${now.commit} compared with ${than}:`,
    );
    console.log(`      speed ${signed(speed)}, memory ${signed(memory)}${why === null ? "" : `: ${why}`}`);
  }
  console.log(`history: ${all.length} compared, ${refused} refused`);
  return refused === 0 ? 0 : 1;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mlora: { type: "string", default: join(ROOT, "dist", "mlora") },
    against: { type: "string" },
    as: { type: "string" },
    rounds: { type: "string", default: "3" },
    tolerance: { type: "string", default: "0.05" },
  },
});
const [mode, ...flags] = positionals;
const [rounds, tolerance] = [Number(values.rounds), Number(values.tolerance)];
if (!(Number.isInteger(rounds) && rounds > 0)) throw new Error(`expected a whole number of rounds, found '${values.rounds}'`);
if (!(tolerance >= 0)) throw new Error(`expected a share as tolerance (0.05 is 5 %), found '${values.tolerance}'`);
if (mode === "record") record(values.mlora, values.against, values.as ?? values.against ?? "", rounds, flags);
else if (mode === "compare" && flags.length === 0) process.exit(compare(tolerance));
else throw new Error(`expected record or compare, found '${positionals.join(" ")}'`);
