// Tables for people: aligned columns, numbers to the right, nothing wider than it must be.

import { visibleLine } from "../base/terminal.ts";

export type Column<Row> = {
  readonly title: string;
  readonly of: (row: Row) => string;
  readonly align?: "right";
};

/** Lines of a table, title line first. */
export function table<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string[] {
  const cells = [columns.map(({ title }) => title), ...rows.map((row) => columns.map(({ of }) => visibleLine(of(row))))];
  const widths = columns.map((_, i) => Math.max(...cells.map((line) => Bun.stringWidth(line[i]!))));
  const pad = (text: string, i: number) => {
    const space = " ".repeat(widths[i]! - Bun.stringWidth(text));
    return columns[i]!.align === "right" ? space + text : text + space;
  };
  return cells.map((line) => line.map(pad).join("  ").trimEnd());
}

/** 12345 as "12,345". */
export const count = (n: number): string => Math.round(n).toLocaleString("en-US");

/** Seconds as "4.2 s", "3 min 05 s" or "2 h 07 min". */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (n: number) => `${n}`.padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}
