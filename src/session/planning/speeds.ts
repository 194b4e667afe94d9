// How fast devices of this machine were when that was last measured, kept in the cache folder: the peak of a device, and what
// runs of a model reached on it. A plan's time is estimated from these.

import { existsSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../../base/atomic.ts";
import { cacheFolders, ownFolder } from "../../base/cache.ts";
import { wallTime } from "../../base/clock.ts";
import { MloraError, textOf } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import { linearElements } from "../../families/linears.ts";
import { readJsonObject } from "../../files/json.ts";
import type { Plan } from "../../plan/plan.ts";

const speed = v.object({ flops: v.pipe(v.number(), v.finite(), v.gtValue(0)), at: v.number() });
const speeds = v.object({ format: v.literal(1), speeds: v.record(v.string(), speed) });
/** Floating-point operations a second; `at` in ms since 1970. */
export type Speed = v.InferOutput<typeof speed>;

/** The oldest give way. */
const MOST = 256;

function path(): string {
  return join(ownFolder(cacheFolders()[0]!, "speeds"), "speeds.json");
}

function readAll(): Readonly<Record<string, Speed>> {
  try {
    const file = path();
    if (!existsSync(file)) return {};
    const parsed = v.safeParse(speeds, readJsonObject(file, "speeds.file"));
    return parsed.success ? parsed.output.speeds : {};
  } catch (error) {
    log(1, () => `speeds cannot be read: ${textOf(error)}`);
    return {};
  }
}

/** What was measured under this key; null where nothing was. */
export const knownSpeed = (key: string): Speed | null => readAll()[key] ?? null;

/** Keeps a speed for later plans; one that cannot be kept is measured again. */
export function keepSpeed(key: string, flops: number): void {
  if (!(Number.isFinite(flops) && flops > 0)) return;
  const all = Object.entries({ ...readAll(), [key]: { flops, at: wallTime() } });
  const newest = all.sort(([, a], [, b]) => b.at - a.at).slice(0, MOST);
  try {
    writeFileAtomic(path(), `${JSON.stringify({ format: 1, speeds: Object.fromEntries(newest) })}\n`);
  } catch (error) {
    if (!(error instanceof MloraError) && !(error instanceof Error)) throw error;
    log(1, () => `speeds cannot be kept: ${textOf(error)}`);
  }
}

/** Of a device's products of large matrices. */
export const peakKey = ({ kind, name, compute }: Plan["device"]): string => `peak ${kind} ${name} ${compute}`;

/** Of runs of one model, held in one way, on devices of one kind. */
export function runKey({ device, spec, stages }: Plan): string {
  const { format, recomputation } = stages[0]!.sizes;
  const shape = [spec.family, spec.layers, spec.hidden, spec.vocab, linearElements(spec)].join(" ");
  return `run ${device.kind} ${device.name} ${device.compute} ${format} ${recomputation} ${stages.length} stages, ${shape}`;
}
