// Files of a repository on this machine: fetched into huggingface_hub's cache, or found there.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { makeFolder, removeQuietly, writeFileAtomic } from "../../base/atomic.ts";
import { RequestError, RunError } from "../../base/errors.ts";
import { counted } from "../../base/units.ts";
import { shelf } from "../cache.ts";
import type { Opening } from "../open.ts";
import { download, settle } from "../partial.ts";
import { fileFacts, type Listing, listing, nameOf, type Repo } from "./api.ts";
import { RepoCache } from "./cache.ts";

/** A revision of a repository as it was looked up. */
export type OpenRepo = {
  readonly name: string;
  readonly commit: string;
  /** The folder of the commit's files. */
  readonly folder: string;
  readonly files: readonly string[];
  /** Puts these files there. Throws RequestErrors and RunErrors. */
  readonly fetch: (paths: readonly string[]) => Promise<void>;
};

/** Looks the revision up: on the hub, or in the cache where that is not to be asked or cannot be reached. */
export async function openRepo(of: Repo, opening: Opening): Promise<OpenRepo> {
  const { hub, signal, notice } = opening;
  const cache = new RepoCache(hub, of);
  const name = nameOf(of);
  if (!hub.offline) {
    try {
      const found = await listing(hub, of, signal);
      cache.note(found.commit);
      remember(of, found);
      return {
        name,
        commit: found.commit,
        folder: cache.snapshot(found.commit),
        files: found.files,
        fetch: (paths) => fetchAll(cache, of, found, paths, opening),
      };
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof RunError) || cache.known === null) throw error;
      notice(`${error.message}; the ${name} is taken from the cache`);
    }
  }
  const commit = cache.known;
  if (commit === null)
    throw new RunError(
      "hub.offline",
      `the ${name} at ${of.revision} is not in ${hub.cache}, and HF_HUB_OFFLINE is set`,
      "unset it, or fetch it with hf download",
    );
  const files = recall(of, commit) ?? cache.files(commit);
  return { name, commit, folder: cache.snapshot(commit), files, fetch: (paths) => checkThere(cache, name, commit, paths) };
}

async function fetchAll(
  cache: RepoCache,
  of: Repo,
  { commit, files }: Listing,
  paths: readonly string[],
  opening: Opening,
): Promise<void> {
  const known = new Set(files);
  for (const path of paths) {
    if (!known.has(path))
      throw new RequestError("hub.file", `the ${nameOf(of)} has no file ${path} at ${of.revision}`, "name a file that it has");
    if (!cache.has(commit, path)) await fetchFile(cache, of, commit, path, opening);
  }
}

async function fetchFile(
  cache: RepoCache,
  of: Repo,
  commit: string,
  path: string,
  { hub, signal, progress }: Opening,
): Promise<void> {
  const { etag, hash, size, url, isOwn } = await fileFacts(hub, of, commit, path, signal);
  const blob = cache.blob(etag);
  if (!existsSync(blob)) {
    makeFolder(join(cache.folder, "blobs"));
    const name = `${of.repo}/${path}`;
    const partial = await download({
      ...{ stem: blob, name, url, size, hash, resumes: hash !== null },
      asking: { token: isOwn ? hub.token : null, signal },
      ...(progress ? { progress: (bytes: number) => progress(name, bytes) } : {}),
    });
    if (existsSync(blob)) removeQuietly(partial);
    else settle(partial, blob);
  }
  cache.link(commit, path, etag);
}

/** Offline a file that was never fetched is missing: fewer files would be other rows. */
async function checkThere(cache: RepoCache, name: string, commit: string, paths: readonly string[]): Promise<void> {
  const missing = paths.filter((path) => !cache.has(commit, path));
  const shards = shardsMissing(paths);
  if (missing.length === 0 && shards === null) return;
  throw new RunError(
    "hub.offline",
    `the ${name} is not whole in the cache: ${shards ?? `${missing.length} of ${counted(paths.length, "file")} ${missing.length === 1 ? "is" : "are"} missing, as ${missing[0]}`}`,
    "fetch it where the hub can be reached",
  );
}

/** "train-00000-of-00003.parquet" without its sisters; null where none are missing. */
function shardsMissing(paths: readonly string[]): string | null {
  const found = new Map<string, number>();
  for (const path of paths) {
    const [, stem, , count] = /^(.*)-(\d{5})-of-(\d{5})/.exec(path) ?? [];
    if (stem !== undefined) found.set(`${stem}-of-${count}`, (found.get(`${stem}-of-${count}`) ?? 0) + 1);
  }
  const short = [...found].find(([key, count]) => count < Number(key.slice(-5)));
  return short
    ? `${short[1]} of ${counted(Number(short[0].slice(-5)), "shard")} of ${short[0].replace(/-of-\d+$/, "")} are there`
    : null;
}

const names = v.pipe(v.string(), v.parseJson(), v.array(v.string()));
const listingPath = ({ kind, repo }: Repo, commit: string): string =>
  join(shelf("listings"), `${kind}--${repo.replace("/", "--")}--${commit}.json`);

/** A snapshot holds what was fetched, not what the repository has: its names are kept next to it. */
function remember(of: Repo, { commit, files }: Listing): void {
  const path = listingPath(of, commit);
  if (!existsSync(path)) writeFileAtomic(path, `${JSON.stringify(files)}\n`, 0o600);
}

function recall(of: Repo, commit: string): readonly string[] | null {
  const path = listingPath(of, commit);
  const read = existsSync(path) ? v.safeParse(names, readFileSync(path, "utf8")) : null;
  return read?.success ? read.output : null;
}
