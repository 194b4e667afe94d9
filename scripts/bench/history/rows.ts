// Rows of docs/measurements/history.csv: what `mlora bench` came to in some rounds of one setting.

import { csvLine, csvRows } from "../csv.ts";

export type Row = {
  readonly date: string; // UTC
  readonly commit: string;
  readonly machine: string;
  readonly shape: string;
  readonly settings: string;
  readonly rounds: number;
  readonly tokens_per_s: number; // median of the rounds
  readonly range: string; // of the rounds, "LEAST to MOST"
  readonly device_mib: number;
  readonly rss_mib: number;
  /** The build that took turns with it in the same call, or empty; and the median of its rounds' ratios to that one's speed. */
  readonly against: string;
  readonly ratio: number | null;
  readonly ratio_range: string;
  /** Of the programs, and of the machine's driver. */
  readonly versions: string;
  /** What the peer was, with its versions, or empty; its median speed; and as with the build before. */
  readonly peer: string;
  readonly peer_tokens_per_s: number | null;
  readonly peer_ratio: number | null;
  readonly peer_range: string;
};

const COLUMNS = [
  ...(["date", "commit", "machine", "shape", "settings", "rounds", "tokens_per_s", "range", "device_mib", "rss_mib"] as const),
  ...(["against", "ratio", "ratio_range", "versions", "peer", "peer_tokens_per_s", "peer_ratio", "peer_range"] as const),
];
export const HEAD: string = COLUMNS.join(",");
const NUMBERS: readonly string[] = [
  ...["rounds", "tokens_per_s", "device_mib", "rss_mib", "ratio"],
  ...["peer_tokens_per_s", "peer_ratio"],
];

export const formatRow = (row: Row): string => csvLine(COLUMNS.map((column) => row[column]));

/** The rows of a file. Throws an Error that names the line. */
export const parseRows = (text: string): Row[] => csvRows(text, COLUMNS, NUMBERS);

/** Rows that may be compared with each other have the same key. */
export const keyOf = ({ machine, shape, settings }: Row): string => [machine, shape, settings].join("\n");

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(values.length - 1) >> 1]! + sorted[values.length >> 1]!) / 2;
}

export const rangeOf = (values: readonly number[], digits = 0): string =>
  [Math.min(...values), Math.max(...values)].map((value) => Number(value.toFixed(digits))).join(" to ");

/** Least and most of a range; null where the cell is empty. */
export function boundsOf(range: string): readonly [least: number, most: number] | null {
  const [least = Number.NaN, most = Number.NaN] = range.split(" to ").map(Number);
  return Number.isNaN(most) ? null : [least, most];
}
