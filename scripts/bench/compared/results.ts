// What a program's command came to in a case, and the rows of docs/measurements/peers.csv that hold it.

import { csvLine, csvRows } from "../csv.ts";
import type { Case, Program } from "./cases.ts";

/** One measurement; `error` says why there is none. */
export type Result =
  | {
      readonly value: number;
      /** Of the GPU; of the process on a CPU; null where it was not measured. */
      readonly bytes: number | null;
      readonly joules: number | null;
      readonly device: string | null;
      readonly version: string | null;
    }
  | { readonly error: string };

export type Row = {
  /** When the call began, in UTC: rows of one call have the same. */
  readonly date: string;
  readonly commit: string;
  readonly machine: string;
  readonly case: string;
  readonly program: Program;
  readonly version: string;
  readonly unit: Case["unit"];
  /** The median of the rounds; null where there is an error. */
  readonly value: number | null;
  readonly range: string;
  readonly rounds: number;
  readonly gib: number | null;
  /** For 1,000 tokens. */
  readonly joules: number | null;
  readonly error: string;
};

const COLUMNS: readonly (keyof Row)[] = [
  ...(["date", "commit", "machine", "case", "program", "version", "unit", "value", "range", "rounds", "gib"] as const),
  ...(["joules", "error"] as const),
];
export const HEAD: string = COLUMNS.join(",");
export const formatRow = (row: Row): string => csvLine(COLUMNS.map((column) => row[column]));
/** Throws an Error that names the line. */
export const parseRows = (text: string): Row[] => csvRows(text, COLUMNS, ["value", "rounds", "gib", "joules"]);

const numberIn = (report: Readonly<Record<string, unknown>>, key: string): number | null => {
  const found = report[key];
  return typeof found === "number" && Number.isFinite(found) ? found : null;
};

const VALUES: Readonly<Record<Case["unit"], string>> = { "tokens/s": "tokens_per_s", "ms a token": "pass_ms", s: "seconds" };
const PACKAGES = ["unsloth", "peft", "transformers", "trl", "torch"];

/** From the last line of what a command has printed. */
export function resultOf(of: Case, printed: string): Result {
  const line = printed.trimEnd().split("\n").at(-1) ?? "";
  let report: Readonly<Record<string, unknown>>;
  try {
    report = JSON.parse(line);
  } catch {
    return { error: `its last line is no JSON: ${line.slice(0, 200)}` };
  }
  if (typeof report["error"] === "string") return { error: report["error"] };
  const value = numberIn(report, VALUES[of.unit]);
  if (value === null) return { error: `it reports no ${VALUES[of.unit]}` };
  const versions = PACKAGES.flatMap((name) => (typeof report[name] === "string" ? [`${name} ${report[name]}`] : []));
  return {
    value,
    bytes: numberIn(report, of.on === "CPU" ? "peak_rss_bytes" : "device_bytes"),
    joules: numberIn(report, "joules_per_1000_tokens"),
    device:
      typeof report["device"] === "string" && report["device"] !== "cuda" && report["device"] !== "cpu"
        ? report["device"]
        : null,
    version: versions.length === 0 ? null : versions.join(", "),
  };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(values.length - 1) >> 1]! + sorted[values.length >> 1]!) / 2;
}

type About = Pick<Row, "date" | "commit" | "machine" | "version">;

/** The row of a program's rounds in a case: it has an error where one of them has. */
export function rowOf(of: Case, program: Program, results: readonly Result[], about: About): Row {
  const failed = results.find((result) => "error" in result);
  const done = results.flatMap((result) => ("error" in result ? [] : [result]));
  const digits = of.unit === "tokens/s" ? 0 : 2;
  const short = (value: number) => Number(value.toFixed(digits));
  const values = done.map(({ value }) => value);
  const most = (key: "bytes" | "joules") => {
    const found = done.flatMap((result) => result[key] ?? []);
    return found.length === 0 ? null : Math.max(...found);
  };
  const [bytes, joules] = [most("bytes"), most("joules")];
  return {
    ...{ date: about.date, commit: about.commit, machine: about.machine, case: of.name, program },
    version: done.find(({ version }) => version !== null)?.version ?? about.version,
    unit: of.unit,
    value: failed ? null : short(median(values)),
    range: failed || values.length < 2 ? "" : `${short(Math.min(...values))} to ${short(Math.max(...values))}`,
    rounds: done.length,
    gib: failed || bytes === null ? null : Number((bytes / 2 ** 30).toFixed(1)),
    joules: failed || joules === null ? null : Number(joules.toFixed(2)),
    error: failed ? failed.error.slice(0, 300) : "",
  };
}
