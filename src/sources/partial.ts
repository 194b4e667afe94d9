// A download that survives what kills it: bytes go to a file of this process, which a later one takes over when its owner is
// gone, and which gets its name only when its size and its hash are right.

import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  statfsSync,
  statSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { makeFolder, removeQuietly, syncFolder } from "../base/atomic.ts";
import { sleep } from "../base/clock.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { writeError } from "../base/faults.ts";
import { randomText } from "../base/secret.ts";
import { count, counted, formatBytes } from "../base/units.ts";
import { type Ask, ask, shown } from "./http.ts";

export type Wanted = {
  /** What the names of its unfinished files begin with: the same for the same bytes alone. */
  readonly stem: string;
  /** What messages call it. */
  readonly name: string;
  readonly url: string;
  readonly asking: Ask;
  /** Bytes; null where it is not known. */
  readonly size: number | null;
  /** Whether it continues where an earlier download ended; `ifRange`: the address still has that state. */
  readonly resumes: boolean;
  readonly ifRange?: string;
  /** The hash of the whole file; null where it is not known. */
  readonly hash: FileHash | null;
  readonly progress?: ((bytes: number) => void) | undefined;
};
export type FileHash = { readonly kind: "sha256" | "git"; readonly hex: string };

const ENDING = ".incomplete";
/** Attempts to continue where a connection broke. */
const ATTEMPTS = 5;
/** A connection that is silent this long is broken. */
const SILENT_MS = 60_000;
const PIECE = 4 << 20;

/** Fetches the file to a place of this process's own, which is returned. Throws RunErrors and RequestErrors. */
export async function download(wanted: Wanted): Promise<string> {
  makeFolder(dirname(wanted.stem));
  const partial = takeOver(wanted.stem) ?? ownName(wanted.stem);
  if (wanted.size !== null) checkSpace(wanted, wanted.size - sizeOf(partial));
  for (let attempt = 1; ; attempt++) {
    try {
      await append(partial, wanted);
      break;
    } catch (error) {
      wanted.asking.signal?.throwIfAborted();
      if (error instanceof RequestError || attempt === ATTEMPTS) throw error;
      await sleep(500 * attempt);
    }
  }
  const found = sizeOf(partial);
  const wrong =
    wanted.size !== null && found !== wanted.size
      ? `has ${counted(found, "byte")}, expected ${count(wanted.size)}`
      : wanted.hash && hashFile(partial, wanted.hash.kind) !== wanted.hash.hex
        ? "has another hash than its server says"
        : null;
  if (wrong !== null) {
    removeQuietly(partial);
    throw new RunError("source.damaged", `${wanted.name} ${wrong} after the download`, "fetch it again; a proxy may change it");
  }
  return partial;
}

/** Gives a file its name, for good: its bytes lie on the disk before, or a power cut could leave a shorter one under it. */
export function settle(partial: string, path: string): void {
  const fd = openSync(partial, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(partial, path);
  syncFolder(dirname(path));
}

const ownName = (stem: string): string => `${stem}.${process.pid}-${randomText(8)}${ENDING}`;

const sizeOf = (path: string): number => statSync(path, { throwIfNoEntry: false })?.size ?? 0;

/** The partial file of a process that is gone, now this one's. */
function takeOver(stem: string): string | null {
  const begin = `${basename(stem)}.`;
  for (const name of readdirSync(dirname(stem))) {
    const [, pid] = /^(\d+)-[a-z0-9]+\.incomplete$/.exec(name.startsWith(begin) ? name.slice(begin.length) : "") ?? [];
    if (pid === undefined || isAlive(Number(pid))) continue;
    const own = ownName(stem);
    try {
      renameSync(join(dirname(stem), name), own);
      return own;
    } catch {
      // another process was first
    }
  }
  return null;
}

const isAlive = (pid: number): boolean => existsSync(`/proc/${pid}`);

function checkSpace({ stem, name }: Wanted, bytes: number): void {
  const { bavail, bsize } = statfsSync(dirname(stem));
  if (bytes <= bavail * bsize) return;
  throw new RequestError(
    "source.space",
    `${name} needs ${formatBytes(bytes)} more, ${dirname(stem)} has ${formatBytes(bavail * bsize)}`,
    "make room on the disk, or choose a folder on another one (HF_HOME, MLORA_CACHE)",
  );
}

/** Appends what the partial file lacks. */
async function append(partial: string, wanted: Wanted): Promise<void> {
  const { url, asking, resumes, ifRange, size } = wanted;
  const has = resumes ? sizeOf(partial) : 0;
  if (size !== null && has === size) return;
  const stop = new AbortController();
  const { signal } = asking;
  const end = () => stop.abort(signal?.reason);
  signal?.addEventListener("abort", end, { once: true });
  const range = has > 0 ? { range: `bytes=${has}-`, ...(ifRange === undefined ? {} : { "if-range": ifRange }) } : {};
  const { response } = await ask(url, { ...asking, headers: { ...asking.headers, ...range }, signal: stop.signal });
  if (!response.ok) throw refused(shown(url), response.status);
  const continues = response.status === 206 && response.headers.get("content-range")?.startsWith(`bytes ${has}-`) === true;
  if (response.status === 206 && !continues)
    throw new RunError("source.failed", `${shown(url)} sends another part than was asked for`);
  const length = Number(response.headers.get("content-length") ?? Number.NaN);
  if (size === null && length > 0) checkSpace(wanted, length);
  let silent = setTimeout(() => stop.abort(new Error("it is silent")), SILENT_MS);
  let written = continues ? has : 0;
  const from = written;
  const fd = openSync(partial, continues ? "a" : "w", 0o644);
  try {
    for await (const chunk of response.body ?? []) {
      clearTimeout(silent);
      silent = setTimeout(() => stop.abort(new Error("it is silent")), SILENT_MS);
      for (let done = 0; done < chunk.length; ) done += writeSync(fd, chunk, done);
      written += chunk.length;
      if (size !== null && written > size) break;
      wanted.progress?.(written);
    }
    fsyncSync(fd);
  } catch (error) {
    if ((error as { syscall?: string }).syscall === "write") throw writeError(partial, error);
    throw new RunError(
      "source.failed",
      `the connection to ${shown(url)} broke: ${textOf(error)}`,
      "try again: it continues from there",
    );
  } finally {
    clearTimeout(silent);
    signal?.removeEventListener("abort", end);
    closeSync(fd);
  }
  const missing = size === null ? (Number.isNaN(length) ? 0 : length - (written - from)) : size - written;
  if (missing > 0)
    throw new RunError(
      "source.failed",
      `${shown(url)} ended ${counted(missing, "byte")} early`,
      "try again: it continues from there",
    );
}

/** An answer that is no file: a RunError where a later try may get it, else a RequestError. */
export function refused(name: string, status: number): RequestError | RunError {
  if (status === 429 || status >= 500)
    return new RunError("source.failed", `${name} answers with ${status}`, "try again later");
  const way = status === 401 || status === 403 ? "fetch it yourself and name the file" : "check the address";
  return new RequestError("data.url", `${name} answers with ${status}`, way);
}

/** The hash of a file's bytes; "git": as git names a blob. */
export function hashFile(path: string, kind: FileHash["kind"]): string {
  const hasher = new Bun.CryptoHasher(kind === "git" ? "sha1" : "sha256");
  if (kind === "git") hasher.update(`blob ${statSync(path).size}\0`);
  const fd = openSync(path, "r");
  try {
    const piece = new Uint8Array(PIECE);
    for (let got = readSync(fd, piece); got > 0; got = readSync(fd, piece)) hasher.update(piece.subarray(0, got));
  } finally {
    closeSync(fd);
  }
  return hasher.digest("hex");
}
