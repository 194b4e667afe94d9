// `mlora bench`: how fast this machine trains a base model of a known shape. Nothing needs to be downloaded.

import { RequestError } from "../base/errors.ts";
import { PRECISIONS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import { jsonText, writeStdout } from "../base/terminal.ts";
import { count, counted, formatBytes, percent } from "../base/units.ts";
import { type BenchmarkOptions, type BenchmarkReport, benchmark } from "../session/benchmark/benchmark.ts";
import { BENCHMARK_METHODS, BENCHMARK_SHARINGS, BENCHMARK_TARGETS } from "../session/benchmark/work.ts";
import { type Checks, choice, dashed, given, MOST, natural, numbersOf, ranksOf } from "./bench-flags.ts";
import { type BenchGenerateFlags, benchGenerate, GENERATION_FLAGS } from "./bench-generate.ts";
import { DEVICES, fileOf, LINKS, wholeNumber } from "./flags.ts";

/** As they were given. */
export type BenchFlags = Readonly<Partial<Record<keyof BenchmarkOptions, unknown>>> & { readonly json?: boolean };

export async function bench(all: BenchFlags & BenchGenerateFlags): Promise<void> {
  if (all["generate"] === true) return await benchGenerate(all);
  const { json = false, ...flags } = all;
  const report = await benchmark(benchmarkOptionsOf(flags));
  writeStdout(json ? `${jsonText(report)}\n` : text(report));
}

/** The flags of a benchmark of training, checked. Throws a RequestError where one is wrong, or is of generation. */
export function benchmarkOptionsOf(flags: Readonly<Record<string, unknown>>): Partial<BenchmarkOptions> {
  for (const flag of GENERATION_FLAGS)
    if (flag in flags)
      throw new RequestError(
        "cli.flag",
        `--${dashed(flag)} was given without --generate`,
        "it says how sequences are generated",
      );
  const options = given(CHECKS, flags);
  const { adapters = 1, rows = 1, length = 1 } = options;
  if (adapters * rows * length > MOST_OF_A_STEP)
    throw new RequestError(
      "cli.flag",
      `--adapters ${adapters} times --rows ${rows} times --length ${length} are ${count(adapters * rows * length)} tokens a step`,
      `lower one of them: at most ${count(MOST_OF_A_STEP)} tokens`,
    );
  return options;
}

/** They are held in memory as 64-bit numbers. */
const MOST_OF_A_STEP = 1 << 26;

const CHECKS: Checks<BenchmarkOptions> = {
  shape: String,
  steps: natural("steps"),
  seconds: natural("seconds"),
  warmUp: (value) => wholeNumber("warm-up", value, 0),
  stepsOnly: Boolean,
  adapters: natural("adapters", MOST.adapters),
  rows: natural("rows", MOST.rows),
  length: natural("length", MOST.tokens),
  trace: (value) => fileOf("trace", `${value}`),
  targets: choice("targets", BENCHMARK_TARGETS),
  experts: choice("experts", BENCHMARK_SHARINGS),
  rank: ranksOf,
  method: choice("method", BENCHMARK_METHODS),
  dropout: dropoutOf,
  precision: choice("precision", PRECISIONS),
  device: choice("device", DEVICES),
  tokens: natural("tokens", MOST.tokens),
  stages: (value) => numbersOf("stages", value, 0.5, MOST.stages),
  recomputation: choice("recomputation", ["auto", ...RECOMPUTATIONS] as const),
  checkpoint: natural("checkpoint"),
  link: choice("link", LINKS),
};

function dropoutOf(value: unknown): number {
  if (typeof value === "number" && value >= 0 && value < 1) return value;
  throw new RequestError("cli.flag", `--dropout is ${value}`, "give it a number from 0, below 1");
}

function text(report: BenchmarkReport): string {
  const { shape, device, compute, adapters, rows, length, ranks, recomputation, tflops, peak_tflops, share_of_peak } = report;
  const { bubble, simulated_bubble: simulated, busiest_expert: busiest, watts } = report;
  const bytes = (key: "planned_bytes" | "device_bytes" | "peak_rss_bytes") => formatBytes(report[key]);
  const families = Object.entries(report.kernel_ms).map(([family, ms]) => `${family} ${ms.toFixed(1)}`);
  return [
    `${shape} on ${device} in ${compute}: ${counted(adapters, "adapter")} of rank ${[...new Set(ranks)].join(", ")}, ${rows} x ${counted(length, "token")} each, recomputation ${recomputation}`,
    `  ${count(report.tokens_per_s)} tokens/s, ${report.ms} ms a step (median)`,
    ...(watts === null
      ? []
      : [`  ${watts.toFixed(0)} W at ${report.mhz} MHz, ${report.joules_per_1000_tokens} J for 1,000 tokens`]),
    `  ${tflops} TFLOP/s of the base model's products, ${(100 * share_of_peak).toFixed(0)} % of the ${peak_tflops} measured here`,
    ...(families.length === 0 ? [] : [`  kernels, ms: ${families.join(", ")}`]),
    ...(bubble === null ? [] : [`  bubble ${percent(bubble)} of all stages' time, simulated ${percent(simulated ?? 0)}`]),
    ...(busiest === null ? [] : [`  the busiest expert of a layer got ${percent(busiest)} of an adapter's rows`]),
    `  memory: planned ${bytes("planned_bytes")}, on the device ${bytes("device_bytes")}, process at its peak ${bytes("peak_rss_bytes")}`,
    "",
  ].join("\n");
}
