// Files of tenants: bytes in the server's folder, all else in its tables.

import { closeSync, fsyncSync, linkSync, mkdirSync, openSync, readdirSync, renameSync, rmSync, writeSync } from "node:fs";
import { join } from "node:path";
import { wallTime } from "../base/clock.ts";
import { randomText } from "../base/secret.ts";
import { counted } from "../base/units.ts";
import { ApiError, notFound } from "./errors.ts";
import type { Database } from "./store.ts";

export type FileRow = {
  readonly id: string;
  readonly tenant: string;
  readonly filename: string;
  readonly purpose: string;
  readonly bytes: number;
  /** Lines that are not blank. */
  readonly lines: number;
  readonly created_at: number;
  readonly expires_at: number | null;
};

export const PURPOSES = ["fine-tune", "batch", "assistants", "vision", "user_data", "evals"] as const;

export const seconds = (): number => Math.floor(wallTime() / 1000);

export type FileLimits = { readonly files: number; readonly disk_bytes: number; readonly file_bytes: number };

/** A file that is being written. */
export type Writing = {
  readonly write: (piece: Uint8Array) => void;
  /** Makes it a file of the tenant. */
  readonly keep: (of: Pick<FileRow, "filename" | "purpose" | "expires_at">) => FileRow;
  /** Removes it, unless it was kept. */
  readonly drop: () => void;
};

const NEWLINE = 0x0a;
const BLANKS = new Set([0x20, 0x09, 0x0d]);

export class Files {
  readonly #folder: string;

  /** Removes what a killed server left half written. */
  constructor(
    private readonly db: Database,
    folder: string,
    private readonly limits: FileLimits,
  ) {
    this.#folder = join(folder, "files");
    mkdirSync(this.#folder, { recursive: true });
    const known = new Set(db.all<{ id: string }>("SELECT id FROM files").map(({ id }) => id));
    for (const name of readdirSync(this.#folder)) if (!known.has(name)) rmSync(join(this.#folder, name), { force: true });
  }

  /** Throws an ApiError where the tenant has as many files as it may have. */
  begin(tenant: string): Writing {
    const held = this.db.get<{ files: number; bytes: number }>(
      "SELECT count(*) AS files, coalesce(sum(bytes), 0) AS bytes FROM files WHERE tenant = ?",
      tenant,
    )!;
    const full = (what: string) => new ApiError(400, `This key has ${what}: delete files first.`, { code: "quota_exceeded" });
    if (held.files >= this.limits.files) throw full(`${counted(held.files, "file")}, as many as it may have`);
    const id = `file-${randomText(24)}`;
    const part = join(this.#folder, `${id}.part`);
    const to = openSync(part, "wx", 0o600);
    let [bytes, lines, isBlank, isOpen] = [0, 0, true, true];
    const close = () => {
      if (isOpen) closeSync(to);
      isOpen = false;
    };
    return {
      write: (piece) => {
        for (let at = 0; at < piece.length; ) {
          const newline = piece.indexOf(NEWLINE, at);
          const end = newline < 0 ? piece.length : newline;
          while (isBlank && at < end) isBlank = BLANKS.has(piece[at++]!);
          if (newline >= 0 && !isBlank) lines++;
          if (newline >= 0) isBlank = true;
          at = end + 1;
        }
        bytes += piece.length;
        if (bytes > this.limits.file_bytes)
          throw new ApiError(413, `The file has more than ${counted(this.limits.file_bytes, "byte")}.`, {
            param: "file",
            code: "file_too_large",
          });
        if (held.bytes + bytes > this.limits.disk_bytes)
          throw full(`files of ${counted(held.bytes, "byte")}, and this one is too large for the rest`);
        for (let at = 0; at < piece.length; ) at += writeSync(to, piece, at);
      },
      keep: ({ filename, purpose, expires_at }) => {
        fsyncSync(to);
        close();
        const row = {
          id,
          tenant,
          filename,
          purpose,
          bytes,
          lines: lines + (isBlank ? 0 : 1),
          created_at: seconds(),
          expires_at,
        };
        renameSync(part, this.path(id));
        this.#insert(row);
        return row;
      },
      drop: () => {
        close();
        rmSync(part, { force: true });
      },
    };
  }

  /** A file that the server makes itself, within a transaction of the caller's. */
  make(tenant: string, filename: string, purpose: string, text: string): FileRow {
    const writing = { id: `file-${randomText(24)}`, bytes: Buffer.from(text) };
    const to = openSync(this.path(writing.id), "wx", 0o600);
    for (let at = 0; at < writing.bytes.length; ) at += writeSync(to, writing.bytes, at);
    fsyncSync(to);
    closeSync(to);
    const lines = text.split("\n").filter((line) => line.trim() !== "").length;
    const { length: bytes } = writing.bytes;
    const row = { id: writing.id, tenant, filename, purpose, bytes, lines, created_at: seconds(), expires_at: null };
    this.#insert(row);
    return row;
  }

  #insert({ id, tenant, filename, purpose, bytes, lines, created_at, expires_at }: FileRow): void {
    this.db.run(
      "INSERT INTO files (id, tenant, filename, purpose, bytes, lines, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
      ...[id, tenant, filename, purpose, bytes, lines, created_at, expires_at],
    );
  }

  /** Throws an ApiError 404 where the tenant has no such file. */
  find(tenant: string, id: string, param: string | null = null): FileRow {
    this.expire();
    const row = this.db.get<FileRow>("SELECT * FROM files WHERE id = ? AND tenant = ?", id, tenant);
    if (row) return row;
    throw notFound(`No such File object: ${id}`, param ?? "id");
  }

  list(tenant: string, purpose: string | null, order: "asc" | "desc", after: string | null, limit: number): FileRow[] {
    this.expire();
    const from =
      after === null ? null : this.db.get<{ seq: number }>("SELECT seq FROM files WHERE id = ? AND tenant = ?", after, tenant);
    if (after !== null && !from) throw notFound(`No such File object: ${after}`, "after");
    const [compare, start] = order === "asc" ? [">", -1] : ["<", Number.MAX_SAFE_INTEGER];
    return this.db.all<FileRow>(
      `SELECT * FROM files WHERE tenant = ? AND (? IS NULL OR purpose = ?) AND seq ${compare} ? ORDER BY seq ${order} LIMIT ?`,
      ...[tenant, purpose, purpose, from?.seq ?? start, limit],
    );
  }

  remove(tenant: string, id: string): void {
    this.find(tenant, id);
    this.#remove(id);
  }

  #remove(id: string): void {
    this.db.run("DELETE FROM files WHERE id = ?", id);
    rmSync(this.path(id), { force: true });
  }

  /** Removes files whose time is over. */
  expire(): void {
    for (const { id } of this.db.all<{ id: string }>("SELECT id FROM files WHERE expires_at <= ?", seconds())) this.#remove(id);
  }

  path(id: string): string {
    return join(this.#folder, id);
  }

  /** The file under another name, which stays when this one is deleted. */
  link(id: string, to: string): void {
    rmSync(to, { force: true });
    linkSync(this.path(id), to);
  }
}
