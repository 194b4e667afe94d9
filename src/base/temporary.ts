// Folders for what is gone with this process.

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RunError, textOf } from "./errors.ts";

/** A new folder that this user alone may read, under TMPDIR. Throws a RunError, `files.temporary`. */
export function newTemporaryFolder(name: string): string {
  try {
    return mkdtempSync(join(tmpdir(), `mlora-${name}-`)); // mode 0700
  } catch (error) {
    throw new RunError("files.temporary", textOf(error), "set TMPDIR to a folder that may be written", { cause: error });
  }
}
