// `mlora bench`: how fast this machine trains a base model of a known shape, with random weights and tokens, so that nothing
// needs to be downloaded. The same stage, schedule and kernels as a run. What it reports is the median step.

import { formatBytes } from "../base/bytes.ts";
import { now } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { LINEARS, type ModelSpec } from "../base/spec.ts";
import { makePlan, type Plan, totalBytes } from "../plan/plan.ts";
import { shapeOf } from "../plan/shapes.ts";
import type { AdapterRecipe, Recipe } from "../recipe/recipe.ts";
import type { Observer, StepEvent } from "../run/events.ts";
import { type AdapterData, run } from "../run/run.ts";
import type { Tokens } from "../schedule/pack.ts";
import { randomWeights } from "../stage/base.ts";
import { openLocalStage } from "../stage/local.ts";
import { describeDevice } from "../stage/probe.ts";
import { count } from "./table.ts";

export type BenchOptions = {
  readonly shape?: string;
  readonly device?: string;
  readonly adapters?: number;
  readonly rows?: number;
  readonly length?: number;
  readonly rank?: number;
  readonly dropout?: number;
  readonly targets?: string;
  readonly steps?: number;
  readonly recomputation?: string;
  readonly tokens?: number;
  readonly json?: boolean;
};

/** Steps that warm up and are not counted. */
const WARM_UP = 2;
const TARGETS: Readonly<Record<string, readonly string[]>> = {
  qkvo: ["q_proj", "k_proj", "v_proj", "o_proj"],
  "all-linear": LINEARS,
};

/** A whole number from 1 on, or the default when the flag was not given. */
function natural(options: BenchOptions, flag: keyof BenchOptions, fallback: number): number {
  const value = options[flag] ?? fallback;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1)
    throw new RequestError("bench.flag", `--${flag} is ${value}`, `give --${flag} a whole number, 1 or more`);
  return value;
}

function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  if (!allowed.includes(value as T))
    throw new RequestError("bench.flag", `--${flag} is '${value}'`, `it may be ${allowed.join(", ")}`);
  return value as T;
}

export async function bench(options: BenchOptions): Promise<void> {
  const shape = options.shape ?? "smollm2-135m";
  const spec = shapeOf(shape);
  const steps = natural(options, "steps", 10) + WARM_UP;
  const adapters = natural(options, "adapters", 1);
  const [rows, length] = [natural(options, "rows", 4), natural(options, "length", 64)];
  const device = describeDevice(oneOf("device", options.device ?? "auto", ["auto", "cpu", "cuda"]), "auto");
  const recipe = recipeOf(options, shape, adapters, steps);
  const data = range(adapters).map((i) => randomRows(spec, rows, length, i));
  const summaries = data.map(({ train }) => ({ train: train.map(() => ({ length, targets: length })), eval: [] }));
  const plan = makePlan(recipe, spec, summaries, device);

  const { times, loss } = await timeSteps(plan, data, steps);
  const ms = median(times.slice(WARM_UP));
  const tokens = adapters * rows * length;
  const report = {
    shape,
    device: device.name,
    compute: device.compute,
    adapters,
    rows,
    length,
    rank: recipe.adapters[0]!.rank,
    targets: recipe.adapters[0]!.targets,
    dropout: recipe.adapters[0]!.dropout,
    recomputation: plan.sizes.recomputation,
    steps: steps - WARM_UP,
    ms: Math.round(ms * 10) / 10,
    tokens_per_s: Math.round((1000 * tokens) / ms),
    tflops: Number(((flopsPerToken(spec) * tokens) / ms / 1e9).toFixed(3)),
    planned_bytes: totalBytes(plan.memory),
    peak_rss_bytes: process.resourceUsage().maxRSS * 1024,
    loss: Number(loss.toFixed(4)),
  };
  process.stdout.write(options.json ? `${JSON.stringify(report)}\n` : text(report));
}

/** Median time of a step of all adapters, in ms each, and the last loss. */
async function timeSteps(plan: Plan, data: readonly AdapterData[], steps: number) {
  await using bus = await openLocalStage(plan, (device) => randomWeights(1, device));
  const times: number[] = [];
  let [seen, last, loss] = [0, now(), Number.NaN];
  const stop = new AbortController();
  const observer: Observer = {
    stepped: (event: StepEvent) => {
      loss = event.loss;
      if (++seen % plan.adapters.length !== 0) return;
      times.push(now() - last);
      last = now();
      if (times.length === steps) stop.abort(); // before the last step, so that nothing is saved
    },
    evaluated: () => undefined,
    saved: () => undefined,
    failed: (_, message) => {
      throw new Error(message);
    },
  };
  await run({ plan, data, bus, output: null, observer, stop: stop.signal });
  return { times, loss };
}

function randomRows(spec: ModelSpec, rows: number, length: number, seed: number): AdapterData {
  const rng = new Rng(seed, 5);
  const row = (): Tokens => ({
    ids: Int32Array.from({ length: length + 1 }, () => rng.below(spec.vocab)),
    mask: new Uint8Array(length + 1).fill(1),
  });
  return { train: range(rows).map(row), eval: [] };
}

function recipeOf(options: BenchOptions, shape: string, adapters: number, steps: number): Recipe {
  const targets = TARGETS[oneOf("targets", options.targets ?? "all-linear", Object.keys(TARGETS))]!;
  const rank = natural(options, "rank", 16);
  const adapter = (i: number): AdapterRecipe => ({
    name: `bench-${i}`,
    train: [],
    eval: [],
    evalSplit: 0,
    format: "text",
    template: null,
    chatTemplate: false,
    system: null,
    trainOn: "all",
    method: "lora",
    rank,
    alpha: rank,
    dropout: options.dropout ?? 0,
    rslora: false,
    targets,
    optimizer: { name: "adamw", learningRate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.01, maxGradNorm: null },
    schedule: { name: "constant", warmup: 0, minRatio: 0 },
    epochs: null,
    steps,
    batchSize: natural(options, "rows", 4),
    accumulation: 1,
    maxLength: natural(options, "length", 64),
    overlong: "truncate",
    shuffle: false,
    seed: i,
    evalEvery: null,
    priority: 0,
    initialAdapter: null,
  });
  return {
    path: "bench",
    model: { path: shape, precision: "auto" },
    run: {
      output: "",
      seed: 0,
      device: "auto",
      tokensPerMicrobatch: options.tokens ?? null,
      recomputation: oneOf("recomputation", options.recomputation ?? "auto", ["auto", "none", "selective", "full"]),
    },
    adapters: range(adapters).map(adapter),
  };
}

/** Of the frozen products alone: forward and the gradient of the input, 2 operations a weight each; no gradient of the weights. */
function flopsPerToken(spec: ModelSpec): number {
  const attention = spec.hidden * spec.headDim * (2 * spec.heads + 2 * spec.kvHeads);
  return 4 * (spec.layers * (attention + 3 * spec.hidden * spec.intermediate) + spec.vocab * spec.hidden);
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
};

function text(report: { readonly [key: string]: unknown } & { readonly tokens_per_s: number; readonly ms: number }): string {
  const { shape, device, adapters, rows, length, rank, tflops } = report;
  const bytes = (key: string) => formatBytes(report[key] as number);
  return [
    `${shape} on ${device}: ${adapters} adapters of rank ${rank}, ${rows} x ${length} tokens each`,
    `  ${count(report.tokens_per_s)} tokens/s, ${report.ms} ms a step (median), ${tflops} TFLOP/s of the base model's products`,
    `  memory: planned ${bytes("planned_bytes")}, process at its peak ${bytes("peak_rss_bytes")}`,
    "",
  ].join("\n");
}
