// Measurements as rows of a table in docs/measurements: printed as they come, and kept with --write.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..", "..");

/** Now, in UTC, to the minute. */
export const date = (): string => new Date().toISOString().slice(0, 16).replace("T", " ");

/** What was measured, as Git names it; MLORA_COMMIT says it for a copy that has no history. */
export const commit =
  process.env["MLORA_COMMIT"] ||
  Bun.spawnSync(["git", "describe", "--always", "--dirty"], { cwd: ROOT }).stdout.toString().trim() ||
  "?";

/**
 * `text` with a row after the last one of the table that `head` ends with: a page may have others. Throws where the page has
 * no such table.
 */
export function withRow(text: string, head: string, row: string): string {
  const columns = head.trimEnd().split("\n").slice(-2).join("\n");
  const from = text.indexOf(`${columns}\n`);
  if (from < 0) throw new Error(`the page has no table with the columns ${columns}`);
  let end = from + columns.length + 1;
  while (text[end] === "|") end = text.indexOf("\n", end) + 1 || text.length;
  return text.slice(0, end) + row + text.slice(end);
}

/**
 * The table of docs/measurements/NAME.md, which begins with `head` where there is none yet; its first columns are date and
 * commit.
 */
export function tableOf(name: string, head: string, write: boolean) {
  const file = join(ROOT, "docs", "measurements", `${name}.md`);
  /** Prints a row, and writes it after the last one. */
  return (...cells: readonly (string | number)[]): void => {
    const row = `| ${[date(), commit, ...cells].join(" | ")} |\n`;
    process.stdout.write(row);
    if (!write) return;
    writeFileSync(file, withRow(existsSync(file) ? readFileSync(file, "utf8") : head, head, row));
  };
}
