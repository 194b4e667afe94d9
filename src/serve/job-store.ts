// Jobs, their events and their checkpoints in the tables.

import { randomText } from "../base/secret.ts";
import type { Grader } from "../session/rollouts/rewards.ts";
import { notFound } from "./errors.ts";
import { seconds } from "./files.ts";
import type { Hyperparameters } from "./job-recipe.ts";
import type { Method } from "./openai/methods.ts";
import type { Database } from "./store.ts";

export const STATUSES = ["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"] as const;
export type Status = (typeof STATUSES)[number];
/** Of a job that is not over. */
const OPEN = "('validating_files', 'queued', 'running', 'paused')";

/** What a client asked for, with numbers in place of "auto". */
export type Asked = Hyperparameters & {
  readonly model: string;
  readonly training_file: string;
  readonly validation_file: string | null;
  readonly suffix: string;
  readonly seed: number;
  readonly method: Method;
  readonly beta: number | null;
  /** Of jobs that learn from a grader. */
  readonly grader?: Grader;
  readonly generations?: number;
  readonly max_new_tokens?: number;
  readonly compute_multiplier?: number;
  readonly metadata: Readonly<Record<string, string>> | null;
  /** Of a job that was made from a recipe: its adapter, and its files by the names that they have in the job's folder. */
  readonly recipe?: RecipeAsked;
};
type NamedFile = { readonly id: string; readonly name: string };
export type RecipeAsked = {
  readonly adapter: Readonly<Record<string, unknown>>;
  readonly train: readonly NamedFile[];
  readonly eval: readonly NamedFile[];
};
export type JobError = { readonly code: string; readonly message: string; readonly param: string | null };

type Stored = {
  readonly seq: number;
  readonly id: string;
  readonly tenant: string;
  readonly status: Status;
  readonly created_at: number;
  readonly finished_at: number | null;
  readonly asked: string;
  readonly fine_tuned_model: string | null;
  readonly trained_tokens: number | null;
  readonly result_file: string | null;
  readonly error: string | null;
};
export type JobRow = Omit<Stored, "asked" | "error"> & { readonly asked: Asked; readonly error: JobError | null };

export type EventRow = {
  readonly id: string;
  readonly created_at: number;
  readonly level: "info" | "warn" | "error";
  readonly message: string;
  readonly type: "message" | "metrics";
  readonly data: Readonly<Record<string, unknown>> | null;
};
export type Metrics = Readonly<Record<string, number>>;
export type CheckpointRow = {
  readonly id: string;
  readonly created_at: number;
  readonly step: number;
  readonly model: string;
  readonly metrics: Metrics;
};

export class JobStore {
  constructor(readonly db: Database) {}

  add(id: string, tenant: string, asked: Asked): JobRow {
    this.db.run(
      "INSERT INTO jobs (id, tenant, status, created_at, asked) VALUES (?, ?, 'validating_files', ?, ?)",
      ...[id, tenant, seconds(), JSON.stringify(asked)],
    );
    return this.get(id);
  }

  get(id: string): JobRow {
    return this.known(id)!;
  }

  /** Null where there is no such job. */
  known(id: string): JobRow | null {
    const row = this.db.get<Stored>("SELECT * FROM jobs WHERE id = ?", id);
    return row && rowOf(row);
  }

  /** Throws an ApiError 404 where the tenant has no such job. */
  find(tenant: string, id: string): JobRow {
    const row = this.db.get<Stored>("SELECT * FROM jobs WHERE id = ? AND tenant = ?", id, tenant);
    if (!row) throw notFound(`Could not find fine tune: ${id}`, "fine_tuning_job_id", "fine_tune_not_found");
    return rowOf(row);
  }

  list(tenant: string, after: string | null, limit: number): JobRow[] {
    const from = after === null ? Number.MAX_SAFE_INTEGER : this.find(tenant, after).seq;
    const sql = "SELECT * FROM jobs WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?";
    return this.db.all<Stored>(sql, tenant, from, limit).map(rowOf);
  }

  /** Jobs that are not over, first come first; of one tenant, or of all. */
  open(tenant: string | null = null): JobRow[] {
    const sql = `SELECT * FROM jobs WHERE status IN ${OPEN} AND (? IS NULL OR tenant = ?) ORDER BY seq`;
    return this.db.all<Stored>(sql, tenant, tenant).map(rowOf);
  }

  setStatus(id: string, status: Status, error: JobError | null = null): void {
    const isOver = status === "succeeded" || status === "failed" || status === "cancelled";
    this.db.run(
      "UPDATE jobs SET status = ?, error = ?, finished_at = ? WHERE id = ?",
      ...[status, error && JSON.stringify(error), isOver ? seconds() : null, id],
    );
  }

  succeed(id: string, model: string, trainedTokens: number, resultFile: string): void {
    this.db.run(
      "UPDATE jobs SET status = 'succeeded', finished_at = ?, fine_tuned_model = ?, trained_tokens = ?, result_file = ? WHERE id = ?",
      ...[seconds(), model, trainedTokens, resultFile, id],
    );
  }

  /** Jobs of each status, for metrics. */
  get counts(): { readonly status: Status; readonly jobs: number }[] {
    return this.db.all("SELECT status, count(*) AS jobs FROM jobs GROUP BY status");
  }

  /**
   * Returns whether the event is new: `key` names one that is kept once, however often it happens, as steps that are made again
   * after a kill.
   */
  event(
    job: string,
    message: string,
    more: Partial<Pick<EventRow, "level" | "type" | "data">> = {},
    key: string | null = null,
  ): boolean {
    const { level = "info", type = "message", data = null } = more;
    const id = `ftevent-${key === null ? randomText(24) : idOf(job, key)}`;
    const added = this.db.run(
      "INSERT OR IGNORE INTO events (id, job, created_at, level, message, type, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
      ...[id, job, seconds(), level, message, type, data && JSON.stringify(data)],
    );
    return added > 0;
  }

  /** Newest first. */
  events(job: string, after: string | null, limit: number): EventRow[] {
    return this.#page<Omit<EventRow, "data"> & { data: string | null }>("events", job, after, limit).map((row) => ({
      ...row,
      data: row.data === null ? null : JSON.parse(row.data),
    }));
  }

  /** Events of all jobs of a tenant after one, oldest first. */
  eventsAfter(tenant: string, seq: number, limit: number): (EventRow & { readonly seq: number; readonly job: string })[] {
    type Read = Omit<EventRow, "data"> & { data: string | null; seq: number; job: string };
    const sql =
      "SELECT events.* FROM events JOIN jobs ON jobs.id = job WHERE tenant = ? AND events.seq > ? ORDER BY events.seq LIMIT ?";
    const rows = this.db.all<Read>(sql, tenant, seq, limit);
    return rows.map((row) => ({ ...row, data: row.data === null ? null : JSON.parse(row.data) }));
  }

  /** The data of all metrics, first step first. */
  metrics(job: string): Metrics[] {
    const sql = "SELECT data FROM events WHERE job = ? AND type = 'metrics' ORDER BY seq";
    const all = this.db.all<{ data: string }>(sql, job).map(({ data }) => JSON.parse(data) as Metrics);
    return all.sort((a, b) => a["step"]! - b["step"]!);
  }

  addCheckpoint(job: string, step: number, model: string, metrics: Metrics): void {
    this.db.run(
      "INSERT OR IGNORE INTO checkpoints (id, job, created_at, step, model, metrics) VALUES (?, ?, ?, ?, ?, ?)",
      ...[`ftckpt_${idOf(job, `checkpoint ${step}`)}`, job, seconds(), step, model, JSON.stringify(metrics)],
    );
  }

  /** Newest first. */
  checkpoints(job: string, after: string | null, limit: number): CheckpointRow[] {
    return this.#page<Omit<CheckpointRow, "metrics"> & { metrics: string }>("checkpoints", job, after, limit).map((row) => ({
      ...row,
      metrics: JSON.parse(row.metrics),
    }));
  }

  removeCheckpoint(id: string): void {
    this.db.run("DELETE FROM checkpoints WHERE id = ?", id);
  }

  #page<T>(table: "events" | "checkpoints", job: string, after: string | null, limit: number): T[] {
    const from =
      after === null ? null : this.db.get<{ seq: number }>(`SELECT seq FROM ${table} WHERE id = ? AND job = ?`, after, job);
    if (after !== null && !from) throw notFound(`No such object: ${after}`, "after");
    const sql = `SELECT * FROM ${table} WHERE job = ? AND seq < ? ORDER BY seq DESC LIMIT ?`;
    return this.db.all<T>(sql, job, from?.seq ?? Number.MAX_SAFE_INTEGER, limit);
  }
}

const rowOf = (row: Stored): JobRow => ({
  ...row,
  asked: JSON.parse(row.asked),
  error: row.error === null ? null : JSON.parse(row.error),
});

const idOf = (job: string, key: string): string =>
  new Bun.CryptoHasher("sha256").update(`${job} ${key}`).digest("hex").slice(0, 24);
