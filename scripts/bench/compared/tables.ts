// The tables that scripts/bench/peers makes of its rows: of each machine and case the newest call's.

import { type Asked, CASES, type Case, isLessBetter, PROGRAMS, type Program, TITLES } from "./cases.ts";
import type { Row } from "./results.ts";

/** Of each machine, its cases in the order of CASES with the rows of the newest call that measured it. */
type Found = { readonly machine: string; readonly cases: readonly { readonly of: Case; readonly rows: readonly Row[] }[] };

export function newest(rows: readonly Row[]): Found[] {
  return [...Map.groupBy(rows, ({ machine }) => machine)].map(([machine, own]) => ({
    machine,
    cases: CASES.flatMap((of) => {
      const measured = own.filter((row) => row.case === of.name);
      const last = measured
        .map(({ date }) => date)
        .toSorted()
        .at(-1);
      return measured.length === 0 ? [] : [{ of, rows: measured.filter(({ date }) => date === last) }];
    }),
  }));
}

const rowIn = (rows: readonly Row[], program: Program) => rows.find((row) => row.program === program);
const number = (value: number): string => (value >= 100 ? Math.round(value).toLocaleString("en") : `${value}`);

/** "22,021 (25.9)", or that it does not run: the reason is below the table. */
function cellOf(row: Row | undefined): string {
  if (!row) return "";
  if (row.value === null) return "fails";
  return `${number(row.value)}${row.gib === null ? "" : ` (${row.gib.toFixed(1)})`}`;
}

/** How many times as good a value is as another's. */
const times = (value: number, other: number, { unit }: Case): number => (isLessBetter(unit) ? other / value : value / other);

/** The best peer that runs the case; the build before is not a peer. */
function bestPeer(of: Case, rows: readonly Row[]): Row | undefined {
  const peers = rows.filter(({ program, value }) => program !== "mlora" && program !== "before" && value !== null);
  return peers.toSorted((a, b) => times(b.value!, a.value!, of) - 1)[0];
}

const tableOf = (titles: readonly string[], left: number, lines: readonly (readonly string[])[]): string =>
  [titles, titles.map((_, i) => (i < left ? "---" : "---:")), ...lines].map((cells) => `| ${cells.join(" | ")} |`).join("\n");

/** Why programs failed, a line each; empty where none did. */
function failures(found: Found): string[] {
  return found.cases.flatMap(({ of, rows }) =>
    rows.flatMap(({ program, error }) => (error === "" ? [] : [`- ${TITLES[program]}, ${of.name}: ${error}`])),
  );
}

/** For users: mlora and its peers, in the newest call of each case. */
export function readmeTables(rows: readonly Row[]): string {
  return newest(rows)
    .map((found) => {
      const cases = found.cases.filter(({ rows }) => rowIn(rows, "mlora")?.value != null);
      const peers = PROGRAMS.filter(
        (program) => !["mlora", "before"].includes(program) && cases.some(({ rows }) => rowIn(rows, program)?.value != null),
      );
      const titles = [found.machine, "unit", "mlora", ...peers.map((peer) => TITLES[peer]), "ratio", "measured"];
      const lines = cases.map(({ of, rows }) => {
        const [own, best] = [rowIn(rows, "mlora")!, bestPeer(of, rows)];
        const ratio = best ? times(own.value!, best.value!, of).toFixed(2) : "";
        const shown = peers.map((peer) => (rowIn(rows, peer)?.value == null ? "" : cellOf(rowIn(rows, peer))));
        return [`${of.name}: ${of.about}`, of.unit, cellOf(own), ...shown, ratio, own.date.slice(0, 10)];
      });
      return tableOf(titles, 2, lines);
    })
    .join("\n\n");
}

/** What is asked, and what it came to, in words; empty of what was not measured. */
function verdict(of: Case, rows: readonly Row[], all: Found, { of: program, ofCase, least }: Asked): string {
  const own = rowIn(rows, "mlora");
  if (own?.value == null) return "";
  if (program === undefined && ofCase === undefined)
    return `${number(own.value)} (asked ${isLessBetter(of.unit) ? "at most" : "at least"} ${number(least)})`;
  const others = ofCase === undefined ? rows : (all.cases.find((one) => one.of.name === ofCase)?.rows ?? []);
  const other = rowIn(others, program ?? "mlora");
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
      const lines = found.cases.map(({ of, rows }) => {
        const own = rowIn(rows, "mlora");
        const asked = of.asked.map((one) => verdict(of, rows, found, one)).filter((text) => text !== "");
        const memory = of.most === undefined || own?.gib == null ? [] : [`${own.gib} GiB (asked at most ${of.most})`];
        const cells = PROGRAMS.map((program) => cellOf(rowIn(rows, program)));
        const joules = own?.joules == null ? "" : own.joules.toFixed(2);
        const { date, commit } = rows[0]!;
        return [of.name, of.unit, ...cells, joules, [...asked, ...memory].join("; "), date, commit];
      });
      const versions = PROGRAMS.flatMap((program) => {
        const said = new Set(found.cases.flatMap(({ rows }) => rowIn(rows, program)?.version || []));
        return said.size === 0 ? [] : [`${TITLES[program]}: ${[...said].join("; ")}`];
      });
      const failed = failures(found);
      return [
        `### ${found.machine}\n\n${tableOf(titles, 2, lines)}`,
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
