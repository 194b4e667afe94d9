// What a run's folder remembers beside adapters and checkpoints, so that the run can go on after anything: which adapters have ended,
// and metrics.jsonl, taken back to where each adapter was kept.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { RequestError } from "../base/errors.ts";
import { writeFileAtomic } from "./atomic.ts";
import { madeSchema } from "./checkpoint.ts";
import { measured, readJsonObject } from "./json.ts";

const RECORD = "run.json";
const METRICS = "metrics.jsonl";

const evaluation = v.nullable(v.strictObject({ loss: measured, exact: v.number(), rows: v.number() }));
const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
const outcome = v.strictObject({
  name: v.string(),
  status: v.picklist(["done", "early", "dropped", "stopped", "failed"]),
  message: v.nullable(v.string()),
  steps: count,
  tokens: count,
  seconds: v.number(),
  before: evaluation,
  after: evaluation,
  firstLoss: v.nullable(v.number()),
  lastLoss: v.nullable(v.number()),
  folder: v.nullable(v.string()),
  made: madeSchema,
});
/** How an adapter came out. */
export type Outcome = v.InferOutput<typeof outcome>;

const record = v.strictObject({ format: v.literal(1), adapters: v.record(v.string(), outcome) });

/** The adapters of the run in this folder that have ended, by name. Throws a RequestError, `run.record`, where the file is damaged. */
export function readRecord(folder: string): Map<string, Outcome> {
  const path = join(folder, RECORD);
  if (!existsSync(path)) return new Map();
  const parsed = v.safeParse(record, readJsonObject(path, "run.record"));
  if (parsed.success) return new Map(Object.entries(parsed.output.adapters));
  const { message } = parsed.issues[0];
  throw new RequestError(
    "run.record",
    `${path}: ${v.getDotPath(parsed.issues[0]) ?? "it"}: ${message}`,
    "choose another output",
  );
}

export const writeRecord = (folder: string, adapters: Iterable<Outcome>): void =>
  writeFileAtomic(
    join(folder, RECORD),
    `${JSON.stringify({ format: 1, adapters: Object.fromEntries([...adapters].map((of) => [of.name, of])) }, null, 2)}\n`,
  );

/**
 * Leaves of an adapter's lines what came before the step that it goes on from: `stepsOf` says which, null for all of them. Evaluations at
 * that step are made again. A line that a kill cut off goes, too.
 */
export function rewindMetrics(folder: string, stepsOf: (adapter: string) => number | null): void {
  const path = join(folder, METRICS);
  if (!existsSync(path)) return;
  const kept = readFileSync(path, "utf8")
    .split("\n")
    .slice(0, -1) // behind the last newline is nothing, or half a line
    .filter((line) => {
      const { type, adapter, step } = parsed(line);
      const last = typeof adapter === "string" ? stepsOf(adapter) : null;
      if (last === null) return typeof adapter === "string";
      return typeof step === "number" && ((type === "step" && step <= last) || (type === "evaluation" && step < last));
    });
  writeFileAtomic(path, kept.map((line) => `${line}\n`).join(""));
}

function parsed(line: string): { readonly type?: unknown; readonly adapter?: unknown; readonly step?: unknown } {
  try {
    return JSON.parse(line) ?? {};
  } catch {
    return {};
  }
}
