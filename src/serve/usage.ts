// What each key has used, by model and day: counted when it happens, kept in the tables.

import { wallTime } from "../base/clock.ts";
import type { Database } from "./store.ts";

export type Used = {
  readonly requests?: number;
  readonly prompt_tokens?: number;
  readonly completion_tokens?: number;
  readonly trained_tokens?: number;
};
export type UsageRow = Required<Used> & { readonly model: string; readonly day: string };

const COLUMNS = ["requests", "prompt_tokens", "completion_tokens", "trained_tokens"] as const;

export class Usage {
  constructor(private readonly db: Database) {}

  add(tenant: string, model: string, used: Used): void {
    const day = new Date(wallTime()).toISOString().slice(0, 10);
    const values = COLUMNS.map((name) => used[name] ?? 0);
    this.db.run(
      `INSERT INTO usage (tenant, model, day, ${COLUMNS.join(", ")}) VALUES (?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (tenant, model, day) DO UPDATE SET ${COLUMNS.map((name) => `${name} = ${name} + excluded.${name}`).join(", ")}`,
      ...[tenant, model, day, ...values],
    );
  }

  of(tenant: string): UsageRow[] {
    return this.db.all<UsageRow>(
      `SELECT model, day, ${COLUMNS.join(", ")} FROM usage WHERE tenant = ? ORDER BY day, model`,
      tenant,
    );
  }

  /** Of all tenants, for metrics. */
  get totals(): (Required<Used> & { readonly tenant: string })[] {
    const sums = COLUMNS.map((name) => `sum(${name}) AS ${name}`).join(", ");
    return this.db.all(`SELECT tenant, ${sums} FROM usage GROUP BY tenant`);
  }
}

/** RFC 4180, with a head. */
export const usageCsv = (rows: readonly UsageRow[]): string =>
  [["day", "model", ...COLUMNS], ...rows.map((row) => [row.day, row.model, ...COLUMNS.map((name) => row[name])])]
    .map(
      (cells) =>
        `${cells.map((cell) => (/[",\n]/.test(`${cell}`) ? `"${`${cell}`.replaceAll('"', '""')}"` : cell)).join(",")}\n`,
    )
    .join("");
