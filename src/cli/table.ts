// Tables for people: aligned columns, numbers to the right, nothing wider than it must be.

import { visibleLine } from "../base/terminal.ts";

export type Column<Row> = {
  readonly title: string;
  readonly of: (row: Row) => string;
  readonly align?: "right";
};

/** Of a column of numbers. */
export const right = { align: "right" } as const;

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
