// What a timeline of kernels says: milliseconds by family, and a trace for chrome://tracing or ui.perfetto.dev.

import { existsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { writeFileAtomic } from "../files/atomic.ts";
import type { Plan } from "../plan/plan.ts";
import type { Observer } from "../run/events.ts";

/** A launch, as a device timed it. */
type Launch = { readonly kernel: string; readonly startMs: number; readonly ms: number };

/** Kernel families, as kernels/triton has them, and how the names of their kernels begin. */
const FAMILIES: readonly (readonly [family: string, prefix: RegExp])[] = [
  ["linear", /^linear_/],
  ["lora", /^lora_/],
  ["attention", /^attention_/],
  ["rmsnorm", /^rmsnorm_/],
  ["rope", /^rope_/],
  ["swiglu", /^swiglu_/],
  ["embed", /^(embed|rows)_/],
  ["xent", /^xent/],
  ["adamw", /^(adamw|grad_norm)/],
];

export const familyOf = (kernel: string): string => FAMILIES.find(([, prefix]) => prefix.test(kernel))?.[0] ?? "other";

/** Milliseconds of each family, the longest first. */
export function byFamily(launches: readonly Launch[]): Readonly<Record<string, number>> {
  const total = new Map<string, number>();
  for (const { kernel, ms } of launches) total.set(familyOf(kernel), (total.get(familyOf(kernel)) ?? 0) + ms);
  return Object.fromEntries([...total].sort(([, a], [, b]) => b - a));
}

/** Writes launches as complete events of Chrome's trace format (times in microseconds). */
export function writeTrace(path: string, device: string, launches: readonly Launch[]): void {
  const lane = { pid: 1, tid: 1 };
  const names = [
    { ph: "M", name: "process_name", ...lane, args: { name: "mlora" } },
    { ph: "M", name: "thread_name", ...lane, args: { name: device } },
  ];
  const events = launches.map(({ kernel, startMs, ms }) => ({
    ph: "X",
    name: kernel,
    cat: familyOf(kernel),
    ts: startMs * 1000,
    dur: ms * 1000,
    ...lane,
  }));
  writeFileAtomic(path, `${JSON.stringify({ displayTimeUnit: "ms", traceEvents: [...names, ...events] })}\n`);
}

/** Steps of each adapter that pass before one is traced: kernels are loaded and caches are warm by then. */
const UNTRACED = 2;

type Timed = { readonly startTimeline: () => void; readonly endTimeline: () => Promise<readonly Launch[]> };

/** The file that a trace goes to; its folder has to be there before any long work. */
export function tracePath(path: string): string {
  if (existsSync(dirname(resolve(path)))) return path;
  throw new RequestError(
    "cli.trace",
    `--trace ${path}: the folder ${dirname(path)} is not there`,
    "make it, or name another file",
  );
}

/** Traces one round of steps, after the first few where there are more, and writes it to `path`. */
export function traceObserver(plan: Plan, device: Timed, path: string): Observer {
  const untraced = Math.min(UNTRACED, ...plan.adapters.map((adapter) => adapter.steps - 1));
  let steps = 0;
  if (untraced === 0) device.startTimeline();
  return {
    stepped: () => {
      steps++;
      if (steps === untraced * plan.adapters.length) device.startTimeline();
      if (steps === (untraced + 1) * plan.adapters.length)
        device
          .endTimeline()
          .then((launches) => writeTrace(path, plan.device.name, launches))
          .catch((error) => log(0, () => `the trace was not written: ${textOf(error)}`));
    },
    evaluated: () => undefined,
    saved: () => undefined,
    failed: () => undefined,
  };
}
