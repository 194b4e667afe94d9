// How the newest row of a setting differs from what it is compared with, and whether that is accepted.
//
// What is compared is steady. Two machines of one GPU differ in tokens/s by some percent, and one machine from day to day; the
// ratio to a program that took turns with it does not. So where a row has the build before, its ratio counts, and where it has
// the peer, its ratio to the peer next to that of the last row with the same peer; tokens/s count only where there is neither.
// A median that is worse by more than the tolerance is refused when the ranges of the rounds do not meet: of five rounds each
// that is chance in 1 of 252. Else it is called unsteady: the rounds do not tell, and more of them are the way out.

import { boundsOf, keyOf, type Row } from "./rows.ts";

/** Fewer tell nothing of how steady they are. */
const LEAST_ROUNDS = 3;

export type Difference = {
  readonly what: "the build before" | "the peer" | "tokens/s" | "memory";
  /** The other side: a build, or the commit of a row. */
  readonly than: string;
  /** Of speed, or for memory of bytes: 0.1 is a tenth more. */
  readonly change: number;
  /** Whether the ranges do not meet. */
  readonly apart: boolean;
};

export type Change = {
  readonly now: Row;
  /** The last row before it of the same key. */
  readonly before: Row | null;
  readonly differences: readonly Difference[];
};

/** The newest row of each key. */
export const changes = (rows: readonly Row[]): Change[] =>
  [...Map.groupBy(rows, keyOf).values()].map((of) => changeOf(of.at(-1)!, of.slice(0, -1)));

function changeOf(now: Row, earlier: readonly Row[]): Change {
  const before = earlier.at(-1) ?? null;
  const speeds = speedsOf(now, earlier);
  if (before === null) return { now, before, differences: speeds };
  const grown = Math.max(now.device_mib / before.device_mib, now.rss_mib / before.rss_mib) - 1;
  return { now, before, differences: [...speeds, { what: "memory", than: before.commit, change: grown, apart: true }] };
}

function speedsOf(now: Row, earlier: readonly Row[]): Difference[] {
  const found: Difference[] = [];
  if (now.ratio !== null) {
    const apart = now.rounds >= LEAST_ROUNDS && (boundsOf(now.ratio_range)?.[1] ?? now.ratio) < 1;
    found.push({ what: "the build before", than: now.against, change: now.ratio - 1, apart });
  }
  const last = earlier.findLast(({ peer, peer_ratio: ratio }) => ratio !== null && peer === now.peer);
  if (now.peer_ratio !== null && last) {
    const change = now.peer_ratio / last.peer_ratio! - 1;
    found.push({ what: "the peer", than: last.commit, change, apart: areApart(now, last, "peer_range") });
  }
  const before = earlier.at(-1);
  if (found.length > 0 || now.peer_ratio !== null || !before) return found;
  const change = now.tokens_per_s / before.tokens_per_s - 1;
  return [{ what: "tokens/s", than: before.commit, change, apart: areApart(now, before, "range") }];
}

function areApart(now: Row, before: Row, column: "range" | "peer_range"): boolean {
  if (Math.min(now.rounds, before.rounds) < LEAST_ROUNDS) return false;
  const [mine, other] = [boundsOf(now[column]), boundsOf(before[column])];
  return mine !== null && other !== null && mine[1] < other[0];
}

export type Verdict = "ok" | "unsteady" | "worse";

export function verdictOf({ what, change, apart }: Difference, tolerance: number): Verdict {
  const worse = what === "memory" ? change > tolerance : change < -tolerance;
  return !worse ? "ok" : apart ? "worse" : "unsteady";
}

/** The gravest. */
export const verdictsOf = ({ differences }: Change, tolerance: number): Verdict => {
  const found = differences.map((of) => verdictOf(of, tolerance));
  return found.includes("worse") ? "worse" : found.includes("unsteady") ? "unsteady" : "ok";
};

const signed = (share: number): string => `${share < 0 ? "" : "+"}${(100 * share).toFixed(1)} %`;

const textOf = (of: Difference, tolerance: number): string => {
  const verdict = verdictOf(of, tolerance);
  const by = of.what === "memory" ? `memory ${signed(of.change)}` : `speed ${signed(of.change)} by ${of.what}`;
  return `${by}, compared with ${of.than}${verdict === "ok" ? "" : ` (${verdict})`}`;
};

/** For a terminal. */
export function linesOf(change: Change, tolerance: number): string[] {
  const { now, differences } = change;
  const mark = { ok: "ok      ", unsteady: "UNSTEADY", worse: "WORSE   " }[verdictsOf(change, tolerance)];
  return [
    `${mark}  ${now.machine}, ${now.shape}, ${now.settings}: ${now.commit}`,
    ...(differences.length === 0 ? ["          nothing to compare it with"] : []),
    ...differences.map((of) => `          ${textOf(of, tolerance)}`),
  ];
}

/** What a pipe, a tag or a mention would do in a table of Markdown. */
const cell = (text: string): string =>
  text.replaceAll(/[\\`*_[\]<>|@#]/g, (mark) => (mark === "@" ? "(at)" : `\\${mark}`)).replaceAll(/\s+/g, " ");

/** For a pull request. */
export function comment(all: readonly Change[], tolerance: number): string {
  const verdicts = all.map((change) => verdictsOf(change, tolerance));
  const worse = verdicts.filter((of) => of === "worse").length;
  const unsteady = verdicts.filter((of) => of === "unsteady").length;
  const found = worse > 0 ? `${worse} of ${all.length} worse` : `${all.length} measured, none worse`;
  const rows = all.map((change, i) => {
    const { now, differences } = change;
    const peer = now.peer_ratio === null ? "-" : `${now.peer_ratio} (${now.peer_range}), ${now.peer}`;
    const compared = differences.map((of) => textOf(of, tolerance)).join("; ") || "the first of its kind";
    const speed = `${now.tokens_per_s} (${now.range})`;
    const settings = `${now.machine}: ${now.shape}, ${now.settings}`;
    return `| ${[verdicts[i]!, cell(settings), speed, cell(peer), now.device_mib, cell(compared)].join(" | ")} |`;
  });
  return [
    `### Benchmarks: ${found}${unsteady > 0 ? `, ${unsteady} unsteady` : ""}`,
    "",
    "| | case | tokens/s (range) | ratio to the peer (range) | MiB | compared |",
    "| --- | --- | ---: | --- | ---: | --- |",
    ...rows,
    "",
    `Worse is more than ${(100 * tolerance).toFixed(1)} % with ranges of the rounds that do not meet; unsteady is as much where they do. Versions: ${[...new Set(all.map(({ now }) => cell(now.versions)))].join("; ") || "-"}.`,
    "",
  ].join("\n");
}
