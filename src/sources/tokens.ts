// Where rows are kept as tokens, and what program makes them.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import type { TokenCache } from "../data/file-rows.ts";
import { fileFingerprint } from "../files/fingerprint.ts";
import { shelf, trim } from "./cache.ts";

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
