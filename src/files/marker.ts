// What tells a run's folder from all others: a file that only a run writes, with the run's identity and the format of what is
// next to it.

import { existsSync, lstatSync, readdirSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { isTemporary, writeFileAtomic } from "../base/atomic.ts";
import { RequestError } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { readJsonObject } from "./json.ts";

const MARKER = ".mlora-run.json";
const FORMAT = 2;

const marker = v.object({ program: v.literal("mlora"), format: v.number(), identity: v.string() });

/** Makes the folder a run's. */
export const writeMarker = (folder: string): void =>
  writeFileAtomic(join(folder, MARKER), `${JSON.stringify({ program: "mlora", format: FORMAT, identity: randomText(20) })}\n`);

/**
 * Whether a run has begun in this folder. Throws a RequestError where others have been, or a version that wrote it otherwise.
 */
export function isRun(folder: string, ignored: (name: string) => boolean): boolean {
  const path = join(folder, MARKER);
  if (!lstatSync(path, { throwIfNoEntry: false })?.isFile()) return refuseForeign(folder, ignored);
  const parsed = v.safeParse(marker, readJsonObject(path, "output.marker"));
  if (parsed.success && parsed.output.format === FORMAT) return true;
  const what = parsed.success ? `has format ${parsed.output.format}, expected ${FORMAT}` : "is no marker of a run";
  throw new RequestError(
    "output.marker",
    `${path} ${what}`,
    "continue with the version of mlora that began the run, or choose another output",
  );
}

/** False for an empty folder. */
function refuseForeign(folder: string, ignored: (name: string) => boolean): false {
  const found = readdirSync(folder).filter((name) => !ignored(name) && !isTemporary(name, MARKER));
  if (found.length === 0) return false;
  if (["recipe.toml", "metrics.jsonl"].every((name) => existsSync(join(folder, name))))
    throw new RequestError(
      "output.foreign",
      `${folder} has no marker of a run (${MARKER}); a version of mlora before that may have begun a run there`,
      "choose another output; continue such a run with the version that began it",
    );
  throw new RequestError(
    "output.foreign",
    `${folder} is not empty: it holds ${found.slice(0, 3).join(", ")}`,
    "choose another output, or move this one away",
  );
}

/** Whether a name in a run's folder is that of a half-written marker. */
export const isHalfMarker = (name: string): boolean => isTemporary(name, MARKER);
