// What a run's folder holds besides adapters and checkpoints, so that the run can resume after anything: which adapters have
// ended, and metrics.jsonl and completions.jsonl, taken back to where each adapter was kept.

import { closeSync, existsSync, fstatSync, readSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { replaceFile, writeFileAtomic } from "../base/atomic.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { hintOf } from "../base/faults.ts";
import { openToRead } from "../base/open-file.ts";
import { count } from "../base/schema.ts";
import { evaluationSchema, madeSchema } from "./checkpoint.ts";
import { readJsonObject } from "./json.ts";
import { linesOf } from "./lines.ts";

const RECORD = "run.json";
const METRICS = "metrics.jsonl";
/** Answers of adapters that learn from their own: a line for each, written before the step that learns it. */
export const COMPLETIONS = "completions.jsonl";

export const outcomeSchema = v.strictObject({
  name: v.string(),
  status: v.picklist(["done", "early", "dropped", "stopped", "failed"]),
  message: v.nullable(v.string()),
  steps: count,
  tokens: count,
  seconds: v.number(),
  before: v.nullable(evaluationSchema),
  after: v.nullable(evaluationSchema),
  firstLoss: v.nullable(v.number()),
  lastLoss: v.nullable(v.number()),
  folder: v.nullable(v.string()),
  made: madeSchema,
});
/** How an adapter came out. */
export type Outcome = v.InferOutput<typeof outcomeSchema>;

/** What was trained since the run was last begun or continued, and what was estimated for it; null where nothing was. */
const timeSchema = v.strictObject({
  seconds: v.number(),
  tokens: count,
  tokens_per_second: v.number(),
  estimated_seconds: v.nullable(v.number()),
  basis: v.nullable(v.picklist(["measured", "earlier", "estimated"])),
});
export type RunTime = v.InferOutput<typeof timeSchema>;

const record = v.strictObject({
  format: v.literal(1),
  adapters: v.record(v.string(), outcomeSchema),
  time: v.exactOptional(timeSchema),
});

/**
 * The adapters of the run in this folder that have ended, by name. Throws a RequestError, `run.record`, where the file is
 * damaged.
 */
export const readRecord = (folder: string): Map<string, Outcome> => new Map(Object.entries(readRun(folder).adapters));

/** The same with the run's time, once it has ended. */
export function readRun(folder: string): Omit<v.InferOutput<typeof record>, "format"> {
  const path = join(folder, RECORD);
  if (!existsSync(path)) return { adapters: {} };
  const parsed = v.safeParse(record, readJsonObject(path, "run.record"));
  if (parsed.success) return parsed.output;
  const { message } = parsed.issues[0];
  throw new RequestError(
    "run.record",
    `${path}: ${v.getDotPath(parsed.issues[0]) ?? "it"}: ${message}`,
    "put back the file as the run wrote it, or choose another output",
  );
}

export function writeRecord(folder: string, adapters: Iterable<Outcome>, time?: RunTime): void {
  const ended = Object.fromEntries([...adapters].map((of) => [of.name, of]));
  const written = { format: 1, adapters: ended, ...(time ? { time } : {}) };
  writeFileAtomic(join(folder, RECORD), `${JSON.stringify(written, null, 2)}\n`);
}

/**
 * Leaves of an adapter's lines in both files what came before the step that it resumes from; `stepsOf`: which, null for all.
 * Evaluations at that step are made again. A line that a kill cut off goes, too. Read line by line, whatever the file's size.
 * Throws a RunError; then the file is as it was.
 */
export function rewindMetrics(folder: string, stepsOf: (adapter: string) => number | null): void {
  rewind(join(folder, METRICS), LONGEST.metrics, stepsOf);
  rewind(join(folder, COMPLETIONS), LONGEST.completions, stepsOf);
}

function rewind(path: string, longest: number, stepsOf: (adapter: string) => number | null): void {
  if (!existsSync(path)) return;
  let fd: number | null = null;
  try {
    fd = openToRead(path);
    const kept = stretches(fd, longest, (line) => isKept(line, stepsOf));
    const { value: first } = kept.next();
    if (first?.from === 0 && first.to === fstatSync(fd).size) return;
    const file = fd;
    replaceFile(path, (write) => {
      if (first) copy(file, first, write);
      for (const stretch of kept) copy(file, stretch, write);
    });
  } catch (error) {
    throw error instanceof RunError
      ? error
      : new RunError("metrics.read", `cannot read ${path}: ${textOf(error)}`, hintOf(error));
  } finally {
    if (fd !== null) closeSync(fd);
  }
}

/** Bytes of a line: a completion has its prompt, too. */
const LONGEST = { metrics: 1 << 20, completions: 1 << 26 } as const;
const CHUNK = 4 << 20;
type Stretch = { readonly from: number; readonly to: number };

/** Bytes of whole lines that are kept, one after the other, as far as they have no gap. */
function* stretches(fd: number, longest: number, isKept: (line: string) => boolean): Generator<Stretch> {
  const decoder = new TextDecoder();
  let from = 0;
  let to = 0;
  for (const { bytes, end } of linesOf(fd, longest)) {
    if (bytes === null || !isKept(decoder.decode(bytes))) {
      if (to > from) yield { from, to };
      from = end;
    }
    to = end;
  }
  if (to > from) yield { from, to };
}

function copy(fd: number, { from, to }: Stretch, write: (bytes: Uint8Array) => void): void {
  const buffer = new Uint8Array(new ArrayBuffer(Math.min(CHUNK, to - from)));
  for (let at = from; at < to; ) {
    const got = readSync(fd, buffer, 0, Math.min(buffer.length, to - at), at);
    if (got === 0) throw new Error("it became shorter while it was read");
    write(buffer.subarray(0, got));
    at += got;
  }
}

function isKept(line: string, stepsOf: (adapter: string) => number | null): boolean {
  const { type, adapter, step } = parsed(line);
  const last = typeof adapter === "string" ? stepsOf(adapter) : null;
  if (last === null) return typeof adapter === "string";
  return (
    typeof step === "number" &&
    (((type === "step" || type === "completion") && step <= last) || (type === "evaluation" && step < last))
  );
}

function parsed(line: string): { readonly type?: unknown; readonly adapter?: unknown; readonly step?: unknown } {
  try {
    return JSON.parse(line) ?? {};
  } catch {
    return {};
  }
}
