// Rows of Tinker's tables. What another tenant has is not found.

import { badRequest, notFound } from "../errors.ts";
import { seconds } from "../files.ts";
import type { Database } from "../store.ts";

export type SessionRow = {
  readonly seq: number;
  readonly id: string;
  readonly tenant: string;
  readonly created_at: number;
  readonly ended_at: number | null;
  readonly asked: SessionAsked;
};
export type SessionAsked = {
  readonly user_metadata: Readonly<Record<string, unknown>> | null;
  readonly display_name: string | null;
};

/** What a model is, all that it is made from: `from` is the checkpoint that it begins as. */
export type ModelAsked = {
  readonly rank: number;
  readonly seed: number;
  readonly attention: boolean;
  readonly mlp: boolean;
  readonly from: { readonly folder: string; readonly optimizer: boolean } | null;
  readonly user_metadata: Readonly<Record<string, unknown>> | null;
};
export type ModelRow = {
  readonly seq: number;
  readonly id: string;
  readonly tenant: string;
  readonly session: string;
  readonly created_at: number;
  readonly asked_at: number;
  readonly asked: ModelAsked;
  /** The last of its requests whose effect is saved; -1 for none. */
  readonly saved: number;
};

/** `model`: its name among the served models, null for the base. */
export type SamplerRow = {
  readonly seq: number;
  readonly id: string;
  readonly tenant: string;
  readonly session: string;
  readonly model: string | null;
  readonly path: string | null;
  /** Of a snapshot, the model that was trained. */
  readonly source: string | null;
};

export type RequestRow = {
  readonly seq: number;
  readonly id: string;
  readonly tenant: string;
  readonly session: string;
  /** The model or the sampler, whose n-th request it is. */
  readonly owner: string;
  readonly number: number;
  readonly kind: string;
  readonly digest: string;
  /** Null once it is not needed. */
  readonly body: Uint8Array | null;
  /** For what it leaves to chance. */
  readonly seed: number;
  readonly done_at: number | null;
  readonly type: string | null;
  readonly result: Uint8Array | null;
};

export const CHECKPOINT_KINDS = { weights: "training", sampler_weights: "sampler", external_weights: "external" } as const;
export type CheckpointKind = keyof typeof CHECKPOINT_KINDS;
export type CheckpointRow = {
  readonly seq: number;
  readonly model: string;
  readonly kind: CheckpointKind;
  readonly name: string;
  readonly tenant: string;
  readonly created_at: number;
  readonly expires_at: number | null;
  readonly folder: string;
  readonly bytes: number;
  readonly is_public: number;
  readonly asked: ModelAsked;
  readonly metadata: Readonly<Record<string, unknown>> | null;
};

/** Columns that hold JSON, as texts. */
type Stored<T> = { readonly [K in keyof T]: K extends "asked" | "metadata" ? string | null : T[K] };

const rowOf = <T>(stored: Stored<T>): T => {
  const { asked, metadata } = stored as { readonly asked?: string; readonly metadata?: string | null };
  return {
    ...stored,
    ...(asked === undefined ? {} : { asked: JSON.parse(asked) }),
    ...(metadata == null ? {} : { metadata: JSON.parse(metadata) }),
  } as T;
};

/** Of rows that belong to a session. */
const OF_OPEN = "session IN (SELECT id FROM tinker_sessions WHERE ended_at IS NULL)";

export const pathOf = ({ model, kind, name }: Pick<CheckpointRow, "model" | "kind" | "name">): string =>
  `tinker://${model}/${kind}/${name}`;

export class TinkerStore {
  constructor(readonly db: Database) {}

  addSession(tenant: string, id: string, asked: SessionAsked): void {
    this.db.run(
      "INSERT INTO tinker_sessions (id, tenant, created_at, asked) VALUES (?, ?, ?, ?)",
      ...[id, tenant, seconds(), JSON.stringify(asked)],
    );
  }

  /** Throws an ApiError 404. */
  session(tenant: string, id: string): SessionRow {
    const row = this.db.get<Stored<SessionRow>>("SELECT * FROM tinker_sessions WHERE id = ? AND tenant = ?", id, tenant);
    if (!row) throw notFound(`There is no session '${id}'.`, "session_id");
    return rowOf<SessionRow>(row);
  }

  /** One that is not over. Throws ApiErrors. */
  openSession(tenant: string, id: string): SessionRow {
    const row = this.session(tenant, id);
    if (row.ended_at === null) return row;
    throw badRequest(`The session '${id}' is over: its models can be continued from their checkpoints.`, "session_id");
  }

  sessions(tenant: string | null, isOpen = false): SessionRow[] {
    const sql = `SELECT * FROM tinker_sessions WHERE (? IS NULL OR tenant = ?) ${isOpen ? "AND ended_at IS NULL" : ""} ORDER BY seq DESC`;
    return this.db.all<Stored<SessionRow>>(sql, tenant, tenant).map((row) => rowOf<SessionRow>(row));
  }

  /** Sessions that are over, and of which something is left that goes with them. */
  halfEnded(): string[] {
    const sql = `SELECT id FROM tinker_sessions WHERE ended_at IS NOT NULL AND (
      id IN (SELECT session FROM tinker_requests WHERE done_at IS NULL) OR
      id IN (SELECT session FROM tinker_samplers JOIN models ON name = model WHERE source IS NOT NULL))`;
    return this.db.all<{ readonly id: string }>(sql).map(({ id }) => id);
  }

  endSession(id: string): void {
    this.db.run("UPDATE tinker_sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", seconds(), id);
  }

  addModel(of: Pick<ModelRow, "id" | "tenant" | "session" | "asked">): void {
    this.db.run(
      "INSERT INTO tinker_models (id, tenant, session, created_at, asked_at, asked, saved) VALUES (?, ?, ?, ?, ?, ?, -1)",
      ...[of.id, of.tenant, of.session, seconds(), seconds(), JSON.stringify(of.asked)],
    );
  }

  knownModel(id: string): ModelRow | null {
    const row = this.db.get<Stored<ModelRow>>("SELECT * FROM tinker_models WHERE id = ?", id);
    return row && rowOf<ModelRow>(row);
  }

  /** Throws an ApiError 404. */
  model(tenant: string, id: string): ModelRow {
    const row = this.knownModel(id);
    if (row?.tenant !== tenant) throw notFound(`There is no model '${id}'.`, "model_id");
    return row;
  }

  /** `isOpen`: only those whose sessions are not over. */
  models(where: { readonly tenant?: string; readonly session?: string; readonly isOpen?: boolean }): ModelRow[] {
    const { tenant = null, session = null, isOpen = false } = where;
    const sql = `SELECT * FROM tinker_models WHERE (? IS NULL OR tenant = ?) AND (? IS NULL OR session = ?)
      ${isOpen ? `AND ${OF_OPEN}` : ""} ORDER BY seq DESC`;
    return this.db.all<Stored<ModelRow>>(sql, tenant, tenant, session, session).map((row) => rowOf<ModelRow>(row));
  }

  /** Models of a tenant whose sessions are open. */
  openModels(tenant: string): number {
    const sql = `SELECT count(*) AS models FROM tinker_models AS model JOIN tinker_sessions AS session ON session.id = model.session
      WHERE model.tenant = ? AND session.ended_at IS NULL`;
    return this.db.get<{ readonly models: number }>(sql, tenant)!.models;
  }

  saved(model: string, number: number): void {
    this.db.together(() => {
      this.db.run("UPDATE tinker_models SET saved = ? WHERE id = ?", number, model);
      this.db.run("UPDATE tinker_requests SET body = NULL WHERE owner = ? AND number <= ?", model, number);
    });
  }

  addSampler({ id, tenant, session, model, path, source }: Omit<SamplerRow, "seq">): void {
    this.db.run(
      "INSERT OR IGNORE INTO tinker_samplers (id, tenant, session, model, path, source) VALUES (?, ?, ?, ?, ?, ?)",
      ...[id, tenant, session, model, path, source],
    );
  }

  hasSampler(id: string): boolean {
    return this.db.get("SELECT 1 FROM tinker_samplers WHERE id = ?", id) !== null;
  }

  /** Throws an ApiError 404. */
  sampler(tenant: string, id: string): SamplerRow {
    const row = this.db.get<SamplerRow>("SELECT * FROM tinker_samplers WHERE id = ? AND tenant = ?", id, tenant);
    if (row) return row;
    throw notFound(`There is no sampling session '${id}'.`, "sampling_session_id");
  }

  /** Snapshots of a model, newest first. */
  snapshots(of: string): SamplerRow[] {
    return this.db.all<SamplerRow>("SELECT * FROM tinker_samplers WHERE source = ? ORDER BY seq DESC", of);
  }

  samplers(session: string): SamplerRow[] {
    return this.db.all<SamplerRow>("SELECT * FROM tinker_samplers WHERE session = ? ORDER BY seq", session);
  }

  request(owner: string, number: number): RequestRow | null {
    return this.db.get<RequestRow>("SELECT * FROM tinker_requests WHERE owner = ? AND number = ?", owner, number);
  }

  /** Throws an ApiError 404. */
  requestOf(tenant: string, id: string): RequestRow {
    const row = this.db.get<RequestRow>("SELECT * FROM tinker_requests WHERE id = ? AND tenant = ?", id, tenant);
    if (row) return row;
    throw notFound(`There is no request '${id}'.`, "request_id");
  }

  /**
   * The request's row, which is new (`isNew`) or that of the same request before: one of the same kind and body, or of the same
   * `repeats` where that is given. Throws an ApiError 400 where the number is another request's.
   */
  addRequest(
    of: Pick<RequestRow, "tenant" | "session" | "owner" | "number" | "kind" | "seed"> & {
      readonly body: Uint8Array;
      readonly repeats?: string | null;
    },
  ): {
    readonly row: RequestRow;
    readonly isNew: boolean;
  } {
    const { tenant, session, owner, number, kind, seed, body, repeats } = of;
    const digest = `${kind} ${new Bun.CryptoHasher("sha256").update(repeats ?? body).digest("hex")}`;
    const known = this.request(owner, number);
    if (known) {
      if (known.digest === digest) return { row: known, isNew: false };
      throw badRequest(`Request ${number} of '${owner}' was another one: each has a number of its own.`, "seq_id");
    }
    this.db.run(
      "INSERT INTO tinker_requests (id, tenant, session, owner, number, kind, digest, body, seed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
      ...[`${owner}:${number}`, tenant, session, owner, number, kind, digest, body, seed],
    );
    return { row: this.request(owner, number)!, isNew: true };
  }

  /** A request has come for a model. */
  asked(model: string): void {
    this.db.run("UPDATE tinker_models SET asked_at = ? WHERE id = ?", seconds(), model);
  }

  /** Requests of an owner, of a session or of all that have no result; `isOpen`: only those whose sessions are not over. */
  waiting(of: { readonly owner?: string; readonly session?: string; readonly isOpen?: boolean } = {}): RequestRow[] {
    const { owner = null, session = null, isOpen = false } = of;
    return this.db.all<RequestRow>(
      `SELECT * FROM tinker_requests WHERE done_at IS NULL AND (? IS NULL OR owner = ?) AND (? IS NULL OR session = ?)
       ${isOpen ? `AND ${OF_OPEN}` : ""} ORDER BY seq`,
      ...[owner, owner, session, session],
    );
  }

  finish(id: string, type: string, result: Uint8Array, keepsBody: boolean): void {
    this.db.run(
      `UPDATE tinker_requests SET done_at = ?, type = ?, result = ? ${keepsBody ? "" : ", body = NULL"} WHERE id = ?`,
      ...[seconds(), type, result, id],
    );
  }

  /** Results that have been there for a while go, and requests that are not needed to come to what a model is. */
  prune(age: number): void {
    const before = seconds() - age;
    this.db.run(
      `DELETE FROM tinker_requests WHERE done_at < ? AND (kind = 'sample' OR
         session IN (SELECT id FROM tinker_sessions WHERE ended_at < ?) OR
         number > 0 AND number <= (SELECT saved FROM tinker_models WHERE id = owner))`,
      ...[before, before],
    );
    this.db.run("UPDATE tinker_requests SET result = NULL WHERE done_at < ? AND result IS NOT NULL", before);
  }

  addCheckpoint(of: Omit<CheckpointRow, "seq" | "created_at" | "is_public">): void {
    this.db.run(
      `INSERT INTO tinker_checkpoints (model, kind, name, tenant, created_at, expires_at, folder, bytes, is_public, asked, metadata)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)`,
      ...[of.model, of.kind, of.name, of.tenant, seconds(), of.expires_at, of.folder, of.bytes],
      ...[JSON.stringify(of.asked), of.metadata && JSON.stringify(of.metadata)],
    );
  }

  knownCheckpoint(model: string, kind: string, name: string): CheckpointRow | null {
    const row = this.checkpointRow(model, kind, name);
    return row && (row.expires_at === null || row.expires_at > seconds()) ? row : null;
  }

  /** Also one that has expired and is not removed yet. */
  checkpointRow(model: string, kind: string, name: string): CheckpointRow | null {
    const sql = "SELECT * FROM tinker_checkpoints WHERE model = ? AND kind = ? AND name = ?";
    const row = this.db.get<Stored<CheckpointRow>>(sql, model, kind, name);
    return row && rowOf<CheckpointRow>(row);
  }

  /** By its path, tinker://MODEL/KIND/NAME; with `isRead` also another's that is public. Throws ApiErrors. */
  checkpoint(tenant: string, path: string, isRead = true): CheckpointRow {
    const parts = /^tinker:\/\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(path);
    if (!parts) throw badRequest(`'${path}' is no path of weights, expected tinker://MODEL/weights/NAME.`, "path");
    const [, model, kind, name] = parts;
    if (!Object.hasOwn(CHECKPOINT_KINDS, kind!))
      throw badRequest(
        `'${path}' is no path of weights: its second part is one of ${Object.keys(CHECKPOINT_KINDS).join(", ")}.`,
        "path",
      );
    const row = this.knownCheckpoint(model!, kind!, name!);
    if (row && (row.tenant === tenant || (isRead && row.is_public === 1))) return row;
    throw notFound(`There are no weights '${path}'.`, "path");
  }

  checkpoints(where: { readonly tenant?: string; readonly model?: string }): CheckpointRow[] {
    const { tenant = null, model = null } = where;
    return this.db
      .all<Stored<CheckpointRow>>(
        `SELECT * FROM tinker_checkpoints WHERE (? IS NULL OR tenant = ?) AND (? IS NULL OR model = ?)
         AND (expires_at IS NULL OR expires_at > ?) ORDER BY seq DESC`,
        ...[tenant, tenant, model, model, seconds()],
      )
      .map((row) => rowOf<CheckpointRow>(row));
  }

  /** Bytes of a tenant's checkpoints. */
  checkpointBytes(tenant: string): number {
    const sql = "SELECT coalesce(sum(bytes), 0) AS bytes FROM tinker_checkpoints WHERE tenant = ?";
    return this.db.get<{ readonly bytes: number }>(sql, tenant)!.bytes;
  }

  expired(): CheckpointRow[] {
    const sql = "SELECT * FROM tinker_checkpoints WHERE expires_at <= ?";
    return this.db.all<Stored<CheckpointRow>>(sql, seconds()).map((row) => rowOf<CheckpointRow>(row));
  }

  setPublic({ seq }: CheckpointRow, isPublic: boolean): void {
    this.db.run("UPDATE tinker_checkpoints SET is_public = ? WHERE seq = ?", Number(isPublic), seq);
  }

  setExpiry({ seq }: CheckpointRow, at: number | null): void {
    this.db.run("UPDATE tinker_checkpoints SET expires_at = ? WHERE seq = ?", at, seq);
  }

  removeCheckpoint({ seq }: CheckpointRow): void {
    this.db.run("DELETE FROM tinker_checkpoints WHERE seq = ?", seq);
  }
}
