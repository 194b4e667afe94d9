// Where rows are kept as tokens, and what program makes them.

import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import type { TokenCache } from "../data/file-rows.ts";
import { digestOf } from "../data/row-digest.ts";
import { packedOf } from "../data/rows.ts";
import { fileFingerprint } from "../files/fingerprint.ts";
import { shelf, touch, trim } from "./cache.ts";

/** Smaller files are tokenised in less time than it is worth. */
const LEAST_BYTES = 1 << 20;

/** The cache of tokens; null, with a line in the log, where there is no folder for it. */
export function tokenCache(): TokenCache | null {
  try {
    const folder = shelf("tokens");
    trim(folder);
    return { folder, maker: programHash(), leastBytes: LEAST_BYTES };
  } catch (error) {
    log(1, () => `rows are not kept as tokens: ${textOf(error)}`);
    return null;
  }
}

/** Another program may make other tokens of the same rows: the binary's bytes, or the sources that read rows. */
function programHash(): string {
  if (Bun.isStandaloneExecutable) return fileFingerprint(process.execPath);
  const root = join(import.meta.dir, "..");
  const hasher = new Bun.CryptoHasher("sha256").update(readFileSync(join(root, "..", "package-lock.json")));
  for (const name of [...new Bun.Glob("{data,base,families,objectives}/**/*.ts").scanSync(root)].sort())
    hasher.update(readFileSync(join(root, name)));
  return hasher.digest("hex");
}

/** Digests by what the rows are; adapters of a sweep share theirs. */
const digests = new Map<string, string>();
const MOST_DIGESTS = 1000;

type Lists = Parameters<typeof digestOf>[0];

/** `digestOf`; of rows that are kept as tokens it is kept next to them, since it takes seconds for each 10 million. */
export function keptDigestOf(lists: Lists): string {
  const path = pathOf(lists);
  if (path === null) return digestOf(lists);
  const digest = digests.get(path) ?? keptDigest(path, lists);
  if (digests.size === MOST_DIGESTS) digests.clear();
  digests.set(path, digest);
  return digest;
}

/** By the names of the files of tokens, which stand for what is in them, and which of their rows; null for rows in memory. */
function pathOf(lists: Lists): string | null {
  const hasher = new Bun.CryptoHasher("sha256");
  let folder: string | null = null;
  for (const rows of lists) {
    hasher.update(`${rows.length};`);
    if (rows.length === 0) continue;
    const packed = packedOf(rows);
    if (!packed?.files.every(({ mapped }) => mapped !== undefined)) return null;
    for (const { mapped } of packed.files) hasher.update(`${basename(mapped!)};`);
    if (packed.chosen) hasher.update(packed.chosen);
    folder = dirname(packed.files[0]!.mapped!);
  }
  return folder && join(folder, `${hasher.digest("hex")}.rows`);
}

function keptDigest(path: string, lists: Lists): string {
  const checked = (digest: string) => `${digest} ${Bun.hash.xxHash3(digest).toString(16)}\n`;
  try {
    const text = readFileSync(path, "utf8");
    const [digest = ""] = text.split(" ");
    touch(path); // what is used stays
    if (digest.length === 64 && text === checked(digest)) return digest;
  } catch {
    // it is not there yet
  }
  const digest = digestOf(lists);
  try {
    writeFileAtomic(path, checked(digest), 0o600);
  } catch (error) {
    log(1, () => `the digest of rows is not kept: ${textOf(error)}`);
  }
  return digest;
}
