// The tables that scripts/bench/peers makes of its rows: of each machine and case the newest call's that has mlora. What that
// call lacks is of the newest other one that has it next to mlora; it is marked, and its ratio is to mlora's value there.

import { type Asked, CASES, type Case, isLessBetter, PROGRAMS, type Program, TITLES } from "./cases.ts";
import type { Row } from "./results.ts";

type FoundCase = {
  readonly of: Case;
  /** Of the newest call that measured it. */
  readonly rows: readonly Row[];
  /** Of programs that this call lacks. */
  readonly others: readonly { readonly row: Row; readonly own: Row }[];
};
/** Of each machine, its cases in the order of CASES. */
type Found = { readonly machine: string; readonly cases: readonly FoundCase[] };

export function newest(rows: readonly Row[]): Found[] {
  return [...Map.groupBy(rows, ({ machine }) => machine)].map(([machine, own]) => ({
    machine,
    cases: CASES.flatMap((of): FoundCase[] => {
      const measured = own.filter((row) => row.case === of.name);
      const calls = [...Map.groupBy(measured, ({ date }) => date)]
        .toSorted(([a], [b]) => (a < b ? 1 : -1))
        .map(([, call]) => call);
      const isThere = (row: Row | undefined): row is Row => row !== undefined && row.value !== null;
      const last = calls.find((call) => isThere(rowIn(call, "mlora"))) ?? calls[0];
      const earlier = calls.filter((call) => call !== last);
      const others = PROGRAMS.filter((program) => last && !rowIn(last, program)).flatMap((program) => {
        const call = earlier.find((call) => isThere(rowIn(call, program)) && isThere(rowIn(call, "mlora")));
        return call ? [{ row: rowIn(call, program)!, own: rowIn(call, "mlora")! }] : [];
      });
      return last ? [{ of, rows: last, others }] : [];
    }),
  }));
}

const rowIn = (rows: readonly Row[], program: Program) => rows.find((row) => row.program === program);
/** A program's row and mlora's of the same call; the newest call's where it has both. */
function pairIn({ rows, others }: FoundCase, program: Program) {
  const [row, own] = [rowIn(rows, program), rowIn(rows, "mlora")];
  return row ? { row, own, isOther: false } : { ...others.find((other) => other.row.program === program), isOther: true };
}

const OTHER = "†";
const EXPLAINED = `${OTHER}: of another call than the rest of its row; its ratio is to what mlora had in that one.`;
const explained = (table: string): string => (table.includes(OTHER) ? `${table}\n\n${EXPLAINED}` : table);
const number = (value: number): string => (value >= 100 ? Math.round(value).toLocaleString("en") : `${value}`);

/** "22,021 (25.9)", or that it does not run: the reason is below the table. */
function cellOf(found: FoundCase, program: Program): string {
  const { row, isOther } = pairIn(found, program);
  if (!row) return "";
  if (row.value === null) return "fails";
  return `${number(row.value)}${row.gib === null ? "" : ` (${row.gib.toFixed(1)})`}${isOther ? ` ${OTHER}` : ""}`;
}

/** How many times as good a value is as another's. */
const times = (value: number, other: number, { unit }: Case): number => (isLessBetter(unit) ? other / value : value / other);

const PEERS = PROGRAMS.filter((program) => program !== "mlora" && program !== "before");

/** How many times as good as the best peer that runs the case; null where none does. */
function timesBest(found: FoundCase): number | null {
  const ratios = PEERS.flatMap((peer) => {
    const { row, own } = pairIn(found, peer);
    return row?.value == null || own?.value == null ? [] : [times(own.value, row.value, found.of)];
  });
  return ratios.length === 0 ? null : Math.min(...ratios);
}

const tableOf = (titles: readonly string[], left: number, lines: readonly (readonly string[])[]): string =>
  [titles, titles.map((_, i) => (i < left ? "---" : "---:")), ...lines].map((cells) => `| ${cells.join(" | ")} |`).join("\n");

/** Why programs failed, a line each; empty where none did. */
function failures(found: Found): string[] {
  return found.cases.flatMap(({ of, rows }) =>
    rows.flatMap(({ program, error }) => (error === "" ? [] : [`- ${TITLES[program]}, ${of.name}: ${error}`])),
  );
}

/** For users: mlora and its peers. */
export function readmeTables(rows: readonly Row[]): string {
  return newest(rows)
    .map((found) => {
      const cases = found.cases.filter(({ rows }) => rowIn(rows, "mlora")?.value != null);
      const peers = PEERS.filter((peer) => cases.some((one) => pairIn(one, peer).row?.value != null));
      const titles = [found.machine, "unit", "mlora", ...peers.map((peer) => TITLES[peer]), "ratio", "measured"];
      const lines = cases.map((one) => {
        const { of, rows } = one;
        const ratio = timesBest(one)?.toFixed(2) ?? "";
        const shown = peers.map((peer) => (pairIn(one, peer).row?.value == null ? "" : cellOf(one, peer)));
        const date = rowIn(rows, "mlora")!.date.slice(0, 10);
        return [`${of.name}: ${of.about}`, of.unit, cellOf(one, "mlora"), ...shown, ratio, date];
      });
      return explained(tableOf(titles, 2, lines));
    })
    .join("\n\n");
}

/** What is asked, and what it came to, in words; empty of what was not measured. */
function verdict(one: FoundCase, all: Found, { of: program, ofCase, least }: Asked): string {
  const { of } = one;
  const pair = pairIn(one, program ?? "mlora");
  const own = ofCase === undefined && program !== undefined ? pair.own : rowIn(one.rows, "mlora");
  if (own?.value == null) return "";
  if (program === undefined && ofCase === undefined)
    return `${number(own.value)} (asked ${isLessBetter(of.unit) ? "at most" : "at least"} ${number(least)})`;
  const ofOther = all.cases.find((other) => other.of.name === ofCase)?.rows ?? [];
  const other = ofCase === undefined ? pair.row : rowIn(ofOther, program ?? "mlora");
  if (other?.value == null || other.date !== own.date) return "";
  const what = ofCase === undefined ? TITLES[program!] : `own ${ofCase}`;
  return `${times(own.value, other.value, of).toFixed(3)} of ${what} (asked ${least})`;
}

/** For developers: every program, and what issue and plan ask for. */
export function measuredTables(rows: readonly Row[]): string {
  return newest(rows)
    .map((found) => {
      const titles = [
        "case",
        "unit",
        ...PROGRAMS.map((program) => TITLES[program]),
        "J for 1,000 tokens",
        "asked",
        "date (UTC)",
        "commit",
      ];
      const lines = found.cases.map((one) => {
        const { of, rows } = one;
        const own = rowIn(rows, "mlora");
        const asked = of.asked.map((what) => verdict(one, found, what)).filter((text) => text !== "");
        const memory = of.most === undefined || own?.gib == null ? [] : [`${own.gib} GiB (asked at most ${of.most})`];
        const cells = PROGRAMS.map((program) => cellOf(one, program));
        const joules = own?.joules == null ? "" : own.joules.toFixed(2);
        const { date, commit } = rows[0]!;
        return [of.name, of.unit, ...cells, joules, [...asked, ...memory].join("; "), date, commit];
      });
      const versions = PROGRAMS.flatMap((program) => {
        const said = new Set(found.cases.flatMap((one) => pairIn(one, program).row?.version || []));
        return said.size === 0 ? [] : [`${TITLES[program]}: ${[...said].join("; ")}`];
      });
      const failed = failures(found);
      return [
        `### ${found.machine}\n\n${explained(tableOf(titles, 2, lines))}`,
        `${versions.join(". ")}.`,
        ...(failed.length === 0 ? [] : [`What failed:\n\n${failed.join("\n")}`]),
      ].join("\n\n");
    })
    .join("\n\n");
}

export const MARKS = { begin: "<!-- table: scripts/bench/peers -->", end: "<!-- end of table -->" };

/** `text` with a table in the place of what is between the marks. Throws an Error where it has not both, in order. */
export function placed(text: string, table: string): string {
  const [from, to] = [text.indexOf(MARKS.begin), text.indexOf(MARKS.end)];
  if (from < 0 || to < from) throw new Error(`expected ${MARKS.begin} and, after it, ${MARKS.end}`);
  return `${text.slice(0, from)}${MARKS.begin}\n\n${table}\n\n${text.slice(to)}`;
}
