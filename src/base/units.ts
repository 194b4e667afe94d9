// Numbers, sizes, times and paths as messages and tables print them.

import { relative } from "node:path";
import { isRemote } from "./source-name.ts";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** "1.50 GiB". */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(2)} ${UNITS[unit]}`;
}

/** 12345 as "12,345". */
export const count = (n: number): string => Math.round(n).toLocaleString("en-US");

/** 1 as "1 row", 12345 as "12,345 rows", 2.5 as "2.5 rows"; `many` where an s does not make the plural. */
export const counted = (n: number, one: string, many = `${one}s`): string =>
  `${n.toLocaleString("en-US")} ${n === 1 ? one : many}`;

/** Seconds as "4.2 s", "3 min 05 s" or "2 h 07 min". */
export function duration(seconds: number): string {
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (n: number) => `${n}`.padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/** How far a reading is, after `seconds`: "12,000 rows, 3.1 MB of 40 MB (8 %), 4,000 rows/s"; without a rate for 0 s. */
export function readText(
  { rows, bytes, totalBytes }: { readonly rows: number; readonly bytes: number; readonly totalBytes: number },
  seconds: number,
): string {
  const rate = seconds > 0 ? `, ${count(rows / seconds)} rows/s` : "";
  const done = Math.floor((100 * bytes) / Math.max(1, totalBytes));
  return `${counted(rows, "row")}, ${formatBytes(bytes)} of ${formatBytes(totalBytes)} (${done} %)${rate}`;
}

/** 0.0312 as "3.1 %". */
export const percent = (share: number): string => `${(100 * Math.max(0, share)).toFixed(1)} %`;

/** A path for people: relative to the working folder where that is shorter. An address, or a hub's name, stays as it is. */
export function shortPath(path: string): string {
  if (isRemote(path)) return path;
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}
