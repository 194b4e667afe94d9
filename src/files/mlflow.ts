// What MLflow is sent of a run, in the run's folder: a line of JSON for each thing, in the order in which it happened, and next
// to it how far a server has it. So nothing depends on whether a server answers while the run trains.

import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, truncateSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { count } from "../base/schema.ts";
import { linesOf } from "./lines.ts";

const ofAdapter = { adapter: v.string(), /** ms since 1970. */ time: count };

/** MLflow's own words. */
const STATUSES = ["RUNNING", "FINISHED", "FAILED", "KILLED"] as const;

const schema = v.variant("what", [
  /** A run of MLflow's begins; `id` is its tag, so that it is found again. */
  v.object({ what: v.literal("begin"), ...ofAdapter, id: v.string(), params: v.record(v.string(), v.string()) }),
  v.object({ what: v.picklist(["train", "eval"]), ...ofAdapter, step: count, scalars: v.record(v.string(), v.number()) }),
  v.object({ what: v.literal("status"), ...ofAdapter, status: v.picklist(STATUSES) }),
]);
export type MlflowLine = v.InferOutput<typeof schema>;

/** How far a server has the lines: those before `bytes`; `runs` has MLflow's id of each adapter's run. */
const sentSchema = v.object({
  server: v.string(),
  experiment: v.string(),
  bytes: count,
  runs: v.record(v.string(), v.object({ id: v.string(), run: v.string() })),
});
export type MlflowSent = v.InferOutput<typeof sentSchema>;

export const rowsPath = (folder: string): string => join(folder, "rows.jsonl");
const sentPath = (folder: string): string => join(folder, "sent.json");

export const lineBytes = (line: MlflowLine): Uint8Array => new TextEncoder().encode(`${JSON.stringify(line)}\n`);

/** Bytes of a line: settings are short, rows have tens of numbers. */
const LONGEST = 1 << 20;
/** Bytes that are read at once. */
const CHUNK = 1 << 20;

/** Null for a line that this program did not write. */
const parsed = (text: string): MlflowLine | null => {
  try {
    return v.parse(schema, JSON.parse(text));
  } catch {
    return null;
  }
};

/** All lines; then half a line that a kill left at the end is cut off, so that more may follow. Throws what the system does. */
export function* linesToContinue(folder: string): Generator<MlflowLine> {
  const path = rowsPath(folder);
  if (!existsSync(path)) return;
  const fd = openSync(path, "r");
  let whole = 0;
  try {
    for (const { bytes, end } of linesOf(fd, LONGEST)) {
      whole = end;
      const line = bytes && parsed(new TextDecoder().decode(bytes));
      if (line) yield line;
    }
    if (fstatSync(fd).size > whole) truncateSync(path, whole);
  } finally {
    closeSync(fd);
  }
}

/** The next whole lines after `from` bytes, about a megabyte of them, and where they end; none: `to` is `from`. */
export function linesAfter(folder: string, from: number): { readonly lines: readonly MlflowLine[]; readonly to: number } {
  const path = rowsPath(folder);
  if (!existsSync(path)) return { lines: [], to: from };
  const fd = openSync(path, "r");
  try {
    const bytes = new Uint8Array(CHUNK + LONGEST);
    const got = readSync(fd, bytes, 0, bytes.length, from);
    const length = bytes.subarray(0, got).lastIndexOf(10) + 1;
    const lines = new TextDecoder().decode(bytes.subarray(0, length)).split("\n").map(parsed);
    return { lines: lines.filter((line) => line !== null), to: from + length };
  } finally {
    closeSync(fd);
  }
}

/** Null where nothing has been sent, or the file is damaged: all is sent again then, which changes nothing at a server. */
export function readSent(folder: string): MlflowSent | null {
  try {
    return v.parse(sentSchema, JSON.parse(readFileSync(sentPath(folder), "utf8")));
  } catch {
    return null;
  }
}

export const writeSent = (folder: string, sent: MlflowSent): void =>
  writeFileAtomic(sentPath(folder), `${JSON.stringify(sent)}\n`);
