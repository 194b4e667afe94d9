// The contents of a trace: milliseconds by kernel family, and a file for chrome://tracing or ui.perfetto.dev.

import { writeFileAtomic } from "../../base/atomic.ts";
import { layersText } from "../../base/layers.ts";
import type { KernelSpan, StageSpan } from "../../bus/messages.ts";
import type { Plan } from "../../plan/plan.ts";
import type { Listener } from "../events/events.ts";
import type { SpanNames } from "./span-names.ts";
import { measuredBubble, type Tracer } from "./trace.ts";

/** Kernel families, as kernels/triton has them, and how the names of their kernels begin. */
const FAMILIES: readonly (readonly [family: string, prefix: RegExp])[] = [
  ["linear", /^linear_/],
  ["lora", /^lora_/],
  ["attention", /^attention_/],
  ["rmsnorm", /^rmsnorm_/],
  ["rope", /^rope_/],
  ["swiglu", /^(swiglu|geglu)_/],
  ["embed", /^(embed|rows|pool)_/],
  ["xent", /^xent/],
  ["dora", /^dora_/],
  ["vera", /^vera_/],
  ["adamw", /^(adamw|grad_norm)/],
];

export const familyOf = (kernel: string): string => FAMILIES.find(([, prefix]) => prefix.test(kernel))?.[0] ?? "other";

/** Milliseconds of each family, the longest first. */
export function byFamily(launches: readonly KernelSpan[]): Readonly<Record<string, number>> {
  const total = new Map<string, number>();
  for (const { kernel, start, end } of launches) total.set(familyOf(kernel), (total.get(familyOf(kernel)) ?? 0) + end - start);
  return Object.fromEntries([...total].sort(([, a], [, b]) => b - a));
}

/** Milliseconds of each kernel, the longest first. */
export function byKernel(launches: readonly KernelSpan[]): Readonly<Record<string, number>> {
  const total = new Map<string, number>();
  for (const { kernel, start, end } of launches) total.set(kernel, (total.get(kernel) ?? 0) + end - start);
  return Object.fromEntries([...total].sort(([, a], [, b]) => b - a));
}

/** The rows of a stage in the trace. */
const TRACKS = { passes: 1, links: 2, kernels: 3 };

/** Writes a trace as complete events of Chrome's trace format (times in microseconds): a stage is a process there. */
export function writeTrace(path: string, plan: Plan, { traces, began }: Tracer, names: SpanNames): void {
  const namesOf = (span: StageSpan) => names.of(span, began);
  const events = traces.flatMap(({ spans, kernels }, stage) => {
    const pid = stage + 1;
    const { layerRange, device } = plan.stages[stage]!;
    const name = `stage ${stage}: layers ${layersText(layerRange)} on ${device.name}${device.host && ` (${device.host})`}`;
    return [
      { ph: "M", name: "process_name", pid, args: { name } },
      ...Object.entries(TRACKS).map(([track, tid]) => ({ ph: "M", name: "thread_name", pid, tid, args: { name: track } })),
      ...spans.map((span) => passEvent(namesOf(span), pid, span)),
      ...kernels.map(({ kernel, start, end }) => complete(pid, TRACKS.kernels, kernel, familyOf(kernel), start, end)),
    ];
  });
  const bubble = measuredBubble(traces);
  const otherData = { bubble, stages: plan.stages.length, adapters: plan.adapters.map(({ name }) => name) };
  writeFileAtomic(path, `${JSON.stringify({ displayTimeUnit: "ms", otherData, traceEvents: events })}\n`);
}

const complete = (pid: number, tid: number, name: string, cat: string, start: number, end: number) => ({
  ph: "X",
  name,
  cat,
  ts: start * 1000,
  dur: (end - start) * 1000,
  pid,
  tid,
});

function passEvent(names: readonly string[], pid: number, { kind, pass, start, end }: StageSpan) {
  const tid = kind === "send" || kind === "receive" ? TRACKS.links : TRACKS.passes;
  const event = complete(pid, tid, `${kind}${pass === null ? "" : ` ${pass}`}: ${names.join(", ")}`, kind, start, end);
  return { ...event, args: { pass, adapters: names } };
}

/** Steps of each adapter that pass before kernels are traced: they are loaded and caches are warm by then. */
const UNTRACED = 2;

/** Has all passes recorded, and the kernels of one round of steps, after the first few where there are more. */
export function tracing(plan: Plan, tracer: Tracer, failed: (error: unknown) => void): Listener {
  const untraced = Math.min(UNTRACED, ...plan.adapters.map((adapter) => adapter.steps - 1));
  let steps = 0;
  const set = (kernels: boolean) => void tracer.record({ passes: true, kernels }).catch(failed);
  set(untraced === 0);
  return ({ type }) => {
    if (type !== "step") return;
    steps++;
    if (steps === untraced * plan.adapters.length) set(true);
    if (steps === (untraced + 1) * plan.adapters.length) set(false);
  };
}
