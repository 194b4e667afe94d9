// The key of a run with stages on other machines, in a file that this user alone may read: to be copied to these machines.

import { readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { environment } from "../base/env.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { type RunKey, runKeySchema } from "../bus/seal.ts";

const FOLDER = "keys";
const FORM = "a key is 32 to 256 letters, digits, - and _";

/**
 * Writes the key to a file with mode 0600, which is removed when it is disposed. Throws a RunError, `run.key`, where no
 * folder can be made.
 */
export function saveKey(run: string, key: RunKey): Disposable & { readonly path: string } {
  const faults: string[] = [];
  for (const cache of cacheFolders())
    try {
      const path = join(ownFolder(cache, FOLDER), `${run}.key`);
      writeFileAtomic(path, `${key}\n`, 0o600);
      return { path, [Symbol.dispose]: () => rmSync(path, { force: true }) };
    } catch (error) {
      faults.push(textOf(error));
    }
  throw new RunError("run.key", `the key of the run cannot be saved: ${faults.join("; ")}`, "set MLORA_RUN_KEY instead");
}

/** The key in the environment; null where there is none. Throws a RequestError, `run.key`, where it is not a key. */
export function givenKey(): RunKey | null {
  const key = environment("MLORA_RUN_KEY");
  if (key === undefined) return null;
  if (v.is(runKeySchema, key)) return key;
  throw new RequestError(
    "run.key",
    "MLORA_RUN_KEY is not a run's key",
    `${FORM}: set it to a long random text, a new one for each run`,
  );
}

/** The key in a file, or without one in the environment. Throws a RequestError, `run.key`, which does not contain it. */
export function keyFor(path: string | null): RunKey {
  const key = path === null ? givenKey() : keyIn(path);
  if (key !== null) return key;
  const hint = "copy the file that mlora run names here and give it as --key FILE, or set MLORA_RUN_KEY";
  throw new RequestError("run.key", "the run's key is not given", hint);
}

function keyIn(path: string): RunKey {
  let text: string;
  try {
    if ((statSync(path).mode & 0o077) !== 0) throw new Error(`${path} is open to other users`);
    text = readFileSync(path, "utf8").trim();
  } catch (error) {
    throw new RequestError("run.key", `--key: ${textOf(error)}`, "give a file that you alone may read (chmod 600)");
  }
  if (v.is(runKeySchema, text)) return text;
  throw new RequestError("run.key", `--key: ${path} does not hold a run's key`, `${FORM}: copy the file that mlora run names`);
}
