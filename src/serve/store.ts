// The state of a server: tables of SQLite in its folder, and the lock that keeps the folder for one server.

import { type SQLQueryBindings, Database as Sqlite } from "bun:sqlite";
import { chmodSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";
import { hintOf } from "../base/faults.ts";
import { NUMBERED_CHECKPOINTS, TINKER_TABLES } from "./tinker/tables.ts";

/** Counts up when a table changes; a folder of another number is refused. */
const FORMAT = 3;

/** Those that came with a format, in order: a folder of an earlier one gets what it lacks. */
export const TABLES: readonly string[] = [
  `
CREATE TABLE keys (name TEXT PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE files (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL, lines INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
);
CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, status TEXT NOT NULL, created_at INTEGER NOT NULL,
  finished_at INTEGER, asked TEXT NOT NULL, fine_tuned_model TEXT, trained_tokens INTEGER, result_file TEXT, error TEXT
);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL, created_at INTEGER NOT NULL, level TEXT NOT NULL,
  message TEXT NOT NULL, type TEXT NOT NULL, data TEXT
);
CREATE INDEX events_of_jobs ON events (job, seq);
CREATE TABLE checkpoints (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL, created_at INTEGER NOT NULL, step INTEGER NOT NULL,
  model TEXT NOT NULL, metrics TEXT NOT NULL
);
CREATE INDEX checkpoints_of_jobs ON checkpoints (job, seq);
CREATE TABLE models (
  seq INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, created_at INTEGER NOT NULL, folder TEXT NOT NULL,
  parent TEXT NOT NULL, is_loaded INTEGER NOT NULL
);
CREATE TABLE usage (
  tenant TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, trained_tokens INTEGER NOT NULL, PRIMARY KEY (tenant, model, day)
);
`,
  TINKER_TABLES,
  // A number that was a deleted row's is not given again: what is still being removed would be taken for the new one.
  `
ALTER TABLE models RENAME TO models_before;
CREATE TABLE models (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, created_at INTEGER NOT NULL,
  folder TEXT NOT NULL, parent TEXT NOT NULL, is_loaded INTEGER NOT NULL
);
INSERT INTO models SELECT * FROM models_before;
DROP TABLE models_before;
${NUMBERED_CHECKPOINTS}`,
];

export type Value = string | number | null | Uint8Array;

export class Database implements Disposable {
  readonly #db: Sqlite;

  /** Throws a RequestError, `serve.folder`, where another server has the folder, or it cannot be written. */
  constructor(folder: string) {
    let db: Sqlite | null = null;
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      const path = join(folder, "state.sqlite");
      db = new Sqlite(path, { create: true });
      // The lock lasts until the process ends, however that is.
      db.run("PRAGMA locking_mode = EXCLUSIVE");
      db.run("PRAGMA journal_mode = WAL");
      db.run("PRAGMA synchronous = NORMAL");
      db.run("BEGIN EXCLUSIVE");
      const { user_version: found } = db.query("PRAGMA user_version").get() as { user_version: number };
      if (found > FORMAT)
        throw new RequestError(
          "serve.folder",
          `${folder} is of another version of mlora: its format is ${found}, above ${FORMAT}`,
        );
      for (const tables of TABLES.slice(found)) db.run(tables);
      db.run(`PRAGMA user_version = ${FORMAT}`);
      db.run("COMMIT");
      chmodSync(path, 0o600);
      this.#db = db;
    } catch (error) {
      db?.close();
      if (error instanceof RequestError) throw error;
      if (/database is locked/.test(textOf(error)))
        throw new RequestError("serve.folder", `another server has ${folder}`, "stop it, or give this one a folder of its own");
      throw new RequestError("serve.folder", `cannot use ${folder}: ${textOf(error)}`, hintOf(error));
    }
  }

  all<T>(sql: string, ...values: readonly Value[]): T[] {
    return this.#db.query(sql).all(...(values as SQLQueryBindings[])) as T[];
  }

  get<T>(sql: string, ...values: readonly Value[]): T | null {
    return (this.#db.query(sql).get(...(values as SQLQueryBindings[])) as T | undefined) ?? null;
  }

  /** Rows that it changed. */
  run(sql: string, ...values: readonly Value[]): number {
    return this.#db.query(sql).run(...(values as SQLQueryBindings[])).changes;
  }

  /** All of it or nothing. */
  together<T>(work: () => T): T {
    return this.#db.transaction(work)();
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }
}
