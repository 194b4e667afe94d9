// The cache of huggingface_hub: blobs by the hub's names of their bytes, snapshots of commits as links to them, and refs, which
// say what commit a branch or a tag was. Both programs read and write it, at the same time, too: files appear by a rename.

import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { writeFileAtomic } from "../../base/atomic.ts";
import { RequestError } from "../../base/errors.ts";
import { randomText } from "../../base/secret.ts";
import { nameOf, type Repo } from "./api.ts";
import type { HubSettings } from "./settings.ts";

export const COMMIT = /^[0-9a-f]{40}$/;

export class RepoCache {
  readonly folder: string;

  constructor(
    private readonly hub: HubSettings,
    private readonly of: Repo,
  ) {
    this.folder = join(hub.cache, `${of.kind}--${of.repo.replace("/", "--")}`);
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }
  /** Throws a RequestError, `hub.file`, for a path that leads out of the snapshot. */
  pointer(commit: string, path: string): string {
    if (/(^|\/)\.{1,2}(\/|$)|^\/|[\\\0]/.test(path))
      throw new RequestError(
        "hub.file",
        `${nameOf(this.of)} has a file '${path}', which leads elsewhere`,
        "use another revision",
      );
    return join(this.snapshot(commit), path);
  }
  blob(etag: string): string {
    return join(this.folder, "blobs", etag);
  }

  /** Whether the file of the commit is there, whole. */
  has(commit: string, path: string): boolean {
    return existsSync(this.pointer(commit, path));
  }

  /** The commit that the revision was when it was asked for last; null where it never was. */
  get known(): string | null {
    const { revision } = this.of;
    if (COMMIT.test(revision)) return existsSync(this.snapshot(revision)) ? revision : null;
    const ref = join(this.folder, "refs", revision);
    const commit = statSync(ref, { throwIfNoEntry: false })?.isFile() ? readFileSync(ref, "utf8").trim() : "";
    return COMMIT.test(commit) ? commit : null;
  }

  /** Notes the commit of the revision. */
  note(commit: string): void {
    const { revision } = this.of;
    if (COMMIT.test(revision) || this.known === commit) return;
    this.#tag();
    writeFileAtomic(join(this.folder, "refs", revision), commit);
  }

  /** Makes the file of the commit a link to its blob, which is there. */
  link(commit: string, path: string, etag: string): void {
    const pointer = this.pointer(commit, path);
    mkdirSync(dirname(pointer), { recursive: true });
    const made = `${pointer}.${randomText(8)}`;
    symlinkSync(relative(dirname(pointer), this.blob(etag)), made);
    try {
      renameSync(made, pointer);
    } catch (error) {
      unlinkSync(made);
      throw error;
    }
  }

  /** All files of a snapshot, by their paths in the repository. */
  files(commit: string): string[] {
    const root = this.snapshot(commit);
    if (!existsSync(root)) return [];
    const names = readdirSync(root, { recursive: true, encoding: "utf8" });
    return names.filter((name) => !lstatSync(join(root, name)).isDirectory() && existsSync(join(root, name))).sort();
  }

  /** Backup programs pass over a folder with this file. */
  #tag(): void {
    const tag = join(this.hub.cache, "CACHEDIR.TAG");
    mkdirSync(this.hub.cache, { recursive: true });
    if (!existsSync(tag)) writeFileSync(tag, "Signature: 8a477f597d28d172789f06886806bc55\n");
  }
}
