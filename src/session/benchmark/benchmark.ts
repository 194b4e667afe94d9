// How fast this machine trains a base model of a known shape, with random weights and tokens, so that nothing needs to be
// downloaded. The same stage, schedule and kernels as a run. What it reports is the median step; one more step, which is not
// counted, is timed kernel by kernel.

import { rmSync } from "node:fs";
import { now, processorTime } from "../../base/clock.ts";
import { median, range, sum } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { newTemporaryFolder } from "../../base/temporary.ts";
import type { Bus } from "../../bus/bus.ts";
import type { StageSetup } from "../../bus/messages.ts";
import { openStages } from "../../cluster/open-stages.ts";
import { EnergyMeter, type EnergyReading } from "../../engine/probe.ts";
import { linearElements } from "../../families/linears.ts";
import { makePlan, type Plan, totalBytes, totalMemory } from "../../plan/plan.ts";
import { exactOf, SHAPES, shapeOf } from "../../plan/shapes.ts";
import type { EventOf, SessionEvent } from "../events/events.ts";
import { simulateRun } from "../planning/simulated-run.ts";
import { localDevices } from "../preparation/prepare.ts";
import { type CheckpointStore, diskStore } from "../state/checkpoints.ts";
import { byFamily, writeTrace } from "../tracing/chrome-trace.ts";
import { SpanNames } from "../tracing/span-names.ts";
import { type StageTrace, steadyBubble, Tracer } from "../tracing/trace.ts";
import { type AdapterData, run } from "../training/training.ts";
import { BENCHMARK_DEFAULTS, type BenchmarkWork, randomRows, recipeOf } from "./work.ts";

export type BenchmarkOptions = Partial<BenchmarkWork> & {
  /** The base model's shape, by name. */
  readonly shape?: string;
  /** Steps to measure. */
  readonly steps?: number;
  /** Steps before those that are measured; with 0 what is first loaded is measured, too. */
  readonly warmUp?: number;
  /** Whether no step is timed kernel by kernel, which takes one more. */
  readonly stepsOnly?: boolean;
  /** Seconds to measure at least: a GPU that its power limits comes to its lasting speed after some. */
  readonly seconds?: number;
  readonly link?: StageSetup["link"];
  /** A file for a trace of one step's kernels, in Chrome's trace format. */
  readonly trace?: string;
  /** Seconds after which every adapter is saved, to a temporary folder; left out: never. */
  readonly checkpoint?: number;
};

/** Every number, by name: plain data, as `mlora bench --json` prints it. */
export type BenchmarkReport = Awaited<ReturnType<typeof benchmark>>;

export const SHAPE_NAMES: readonly string[] = Object.keys(SHAPES);

/** Steps that warm up and are not counted, unless it is said. */
const WARM_UP = 2;
/** Steps after those that are measured, at least, in which the passes of a pipeline are timed: that waits for the devices. */
const WATCHED = 12;
/** More steps than a measurement that its seconds end will come to. */
const ENDLESS = 1_000_000;

/** Throws a RequestError where this cannot be measured here, and what a stage fails with. */
export async function benchmark(options: BenchmarkOptions) {
  const {
    shape = "smollm2-135m",
    steps: leastSteps = 10,
    warmUp = WARM_UP,
    stepsOnly = false,
    seconds = 0,
    link = "auto",
    trace,
    checkpoint = null,
    ...work
  } = options;
  const { adapters, rows, length } = { ...BENCHMARK_DEFAULTS, ...work };
  const named = shapeOf(shape);
  // Rows may be longer than those that the model was trained on: what they cost does not depend on that.
  const spec = { ...named, maxPositions: Math.max(named.maxPositions, length) };
  const steps = leastSteps + warmUp;
  const timed = stepsOnly ? 0 : 1;
  const one = recipeOf(work, { shape, spec }, steps + timed);
  const devices = localDevices(one, spec);
  const watched = devices.length === 1 ? 0 : Math.max(2, Math.ceil(WATCHED / adapters));
  const recipe = recipeOf(work, { shape, spec }, (seconds === 0 ? steps : ENDLESS) + watched + timed);
  const device = devices[0]!;
  const data = range(adapters).map((i) => randomRows(spec, rows, length, i));
  const summaries = data.map(({ train }) => ({
    train: train.map(() => ({ length, longest: length, targets: length })),
    eval: [],
  }));
  const plan = makePlan(recipe, spec, summaries, devices, { exact: exactOf(shape) });
  const measured = await timeSteps(plan, data, { warmUp, steps, seconds, watched, timed }, link, checkpoint);
  const { times, processorTimes, losses, loads, traces, peak, deviceBytes, links, saves, bubble, energy } = measured;
  const measuredSteps = times.length - warmUp;
  if (trace !== undefined) writeTrace(trace, plan, measured.tracer, measured.spans);
  const ms = median(times.slice(warmUp));
  const tokens = adapters * rows * length;
  const flops = (flopsPerToken(spec) * tokens) / (ms / 1000);
  return {
    shape,
    device: device.name,
    compute: device.compute,
    adapters,
    rows,
    length,
    ranks: recipe.adapters.map(({ rank }) => rank),
    targets: recipe.adapters[0]!.targets,
    dropout: recipe.adapters[0]!.dropout,
    recomputation: plan.stages[0]!.sizes.recomputation,
    stages: plan.stages.map(({ layerRange, device: { ordinal } }) => ({
      layers: layerRange.to - layerRange.from,
      device: ordinal,
    })),
    /** Medians of each stage's passes while they were traced; empty of one stage. */
    pass_ms: plan.stages.length === 1 ? [] : traces.map(passTimes),
    links: links.flat(),
    bubble: bubble === null ? null : rounded(bubble, 4),
    simulated_bubble: bubble === null ? null : rounded(simulateRun(plan).simulation.steadyBubble ?? Number.NaN, 4),
    steps: measuredSteps,
    ms: rounded(ms, 1),
    mean_ms: rounded(sum(times.slice(warmUp)) / measuredSteps, 2),
    /** Processor time of a step, of this process, in which one stage computes on a CPU; null where it computes elsewhere. */
    cpu_ms: device.kind === "cpu" && plan.stages.length === 1 ? rounded(median(processorTimes.slice(warmUp)), 1) : null,
    checkpoints: saves,
    tokens_per_s: Math.round((1000 * tokens) / ms),
    /** What the GPUs drew in the steps that were measured; null where there is none, or it cannot say. */
    ...energyReport(energy, tokens * measuredSteps, sum(times.slice(warmUp))),
    tflops: rounded(flops / 1e12, 3),
    peak_tflops: rounded(peak / 1e12, 3),
    share_of_peak: rounded(flops / peak, 3),
    kernel_ms: Object.fromEntries(
      Object.entries(byFamily(traces.flatMap(({ kernels }) => kernels))).map(([family, of]) => [family, rounded(of, 3)]),
    ),
    planned_bytes: totalBytes(totalMemory(plan)),
    device_bytes: deviceBytes,
    peak_rss_bytes: process.resourceUsage().maxRSS * 1024,
    losses,
    busiest_expert: spec.experts === null ? null : rounded(sum(loads) / adapters, 4),
  };
}

/** Two readings as watts, MHz and joules. `tokens`: of the time between them, of `ms` milliseconds. */
function energyReport(energy: readonly EnergyReading[], tokens: number, ms: number) {
  const [from, to] = [energy[0], energy.at(-1)];
  if (!from || !to) return { watts: null, mhz: null, joules_per_1000_tokens: null };
  const joules = to.joules - from.joules;
  return {
    watts: rounded(joules / (ms / 1000), 1),
    mhz: Math.round(sum(energy.map(({ mhz }) => mhz)) / energy.length),
    joules_per_1000_tokens: rounded((1000 * joules) / tokens, 2),
  };
}

/** A checkpoint store in a temporary folder, which counts its saves. */
function countingStore() {
  const folder = newTemporaryFolder("bench");
  const store = diskStore(folder, 1);
  const save: CheckpointStore["save"] = async (...of) => {
    await store.save(...of);
    counting.saves++;
  };
  const counting = {
    saves: 0,
    store: { ...store, save },
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  return counting;
}

/** Rounds of steps: `steps` at least, and as many as `seconds` after the warm-up hold; `watched` more are traced. */
type Extent = {
  readonly warmUp: number;
  readonly steps: number;
  readonly seconds: number;
  readonly watched: number;
  /** Rounds after those with kernels: 1, or none. */
  readonly timed: number;
};

/**
 * Times of rounds of steps of all adapters, in ms, the last losses and shares of the busiest experts, readings of what GPUs
 * draw after each round from the last of the warm-up on, and a trace of `watched` more rounds and of one with kernels. Every
 * adapter is saved each `saveSeconds`, unless null.
 */
async function timeSteps(
  plan: Plan,
  data: readonly AdapterData[],
  { warmUp, steps, seconds, watched, timed }: Extent,
  link: StageSetup["link"],
  saveSeconds: number | null,
) {
  const stop = new AbortController();
  await using counting = saveSeconds === null ? null : countingStore();
  const kept = counting ? { store: counting.store, saveEvery: { steps: null, minutes: saveSeconds! / 60 } } : {};
  await using stages = await openStages(plan, { randomSeed: 1 }, link, stop.signal);
  const { bus, lost, links } = stages;
  const peak = await peakOf(plan, bus);
  const times: number[] = [];
  const gpus = plan.stages.flatMap(({ device: { kind, ordinal } }) => (kind === "cuda" ? [ordinal] : []));
  using meter = gpus.length === 0 ? null : EnergyMeter.open([...new Set(gpus)]);
  const energy: EnergyReading[] = warmUp === 0 && meter ? [meter.read()] : [];
  /** Rounds that are measured, once that is known. */
  let measured: number | null = null;
  const tracer = await Tracer.open(bus);
  const spans = new SpanNames();
  let traced: Promise<void> | null = null;
  let taken: Promise<readonly { readonly takenBytes: number }[]> | null = null;
  const processorTimes: number[] = [];
  let [seen, last, lastProcessor] = [0, now(), processorTime()];
  const losses = plan.adapters.map(() => Number.NaN);
  const loads = plan.adapters.map(() => Number.NaN);
  let bubble: number | null = null;
  const isEnough = () => times.length >= steps && sum(times.slice(warmUp)) >= 1000 * seconds;
  const stepped = ({ index, step, loss, busiest = Number.NaN }: EventOf<"step">): void => {
    if (step <= (measured ?? Number.POSITIVE_INFINITY)) losses[index] = loss;
    loads[index] = busiest;
    if (++seen % plan.adapters.length !== 0) return;
    times.push(now() - last);
    processorTimes.push(processorTime() - lastProcessor);
    [last, lastProcessor] = [now(), processorTime()];
    if (meter && measured === null && times.length >= warmUp) energy.push(meter.read());
    if (measured === null && !isEnough()) return;
    measured ??= times.length;
    if (watched > 0 && times.length === measured) traced = tracer.record({ passes: true, kernels: false });
    if (timed > 0 && times.length === measured + watched)
      traced = tracer.record({ passes: true, kernels: true }).then(() => {
        bubble = steadyBubble(tracer.traces);
      });
    if (times.length === measured + watched + timed && watched + timed > 0)
      traced = tracer.record({ passes: false, kernels: false });
    traced?.catch(() => undefined); // the run fails with it, too
    if (times.length < measured + watched + timed) return;
    taken ??= Promise.all(plan.stages.map((_, stage) => bus.request(stage, { type: "clock" }))); // adapters have left later
    taken.catch(() => undefined); // the run fails with it, too
    stop.abort();
  };
  const emit = (event: SessionEvent): void => {
    if (event.type === "step") stepped(event);
    if (event.type === "failed") throw new Error(event.message);
  };
  try {
    await run({ plan, data, bus, spans, output: null, emit, lost, stop: stop.signal, ...kept });
    await traced;
    const deviceBytes = sum(((await taken) ?? []).map(({ takenBytes }) => takenBytes));
    return {
      times: times.slice(0, measured ?? 0),
      processorTimes: processorTimes.slice(0, measured ?? 0),
      energy,
      losses,
      loads,
      traces: tracer.traces,
      tracer,
      spans,
      peak,
      deviceBytes,
      links,
      bubble,
      saves: counting?.saves ?? 0,
    };
  } catch (error) {
    throw await stages.causeOf(error);
  }
}

/** What a stage's passes take, and the time from the end of one to the beginning of the next, in ms: medians. */
function passTimes({ spans }: StageTrace) {
  const trained = spans.filter(({ kind }) => kind === "forward" || kind === "backward");
  const lengths = (of: "forward" | "backward") =>
    trained.filter(({ kind }) => kind === of).map(({ start, end }) => end - start);
  const gapsAfter = (of: "forward" | "backward") =>
    trained.slice(1).flatMap(({ start }, i) => (trained[i]!.kind === of ? [start - trained[i]!.end] : []));
  return {
    forward: rounded(median(lengths("forward")), 2),
    after_forward: rounded(median(gapsAfter("forward")), 2),
    backward: rounded(median(lengths("backward")), 2),
    after_backward: rounded(median(gapsAfter("backward")), 2),
  };
}

/** The peak of all stages' devices together, in FLOP/s; each device is measured once. */
async function peakOf({ stages }: Plan, bus: Bus): Promise<number> {
  const devices = stages.map(({ device: { host, kind, ordinal } }) => `${host} ${kind} ${ordinal}`);
  const once = [...new Set(devices)].map((device) => devices.indexOf(device));
  let total = 0;
  for (const stage of once) total += await bus.request(stage, { type: "peak" });
  return total;
}

/** Of the frozen products alone: forward and the gradient of the input, 2 operations a weight each. */
function flopsPerToken(spec: ModelSpec): number {
  return 4 * (linearElements(spec) + spec.vocab * spec.hidden);
}

const rounded = (value: number, digits: number): number => Number(value.toFixed(digits));
