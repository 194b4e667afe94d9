// `mlora bench`: how fast this machine trains a base model of a known shape. Nothing needs to be downloaded.

import { RequestError } from "../base/errors.ts";
import { PRECISIONS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import { jsonText, writeStdout } from "../base/terminal.ts";
import { count, formatBytes, percent } from "../base/units.ts";
import { type BenchmarkOptions, type BenchmarkReport, benchmark } from "../session/benchmark.ts";
import { BENCHMARK_METHODS, BENCHMARK_TARGETS } from "../session/benchmark-work.ts";
import { DEVICES, LINKS, oneOf, tracePath, wholeNumber } from "./flags.ts";

/** As they were given. */
export type BenchFlags = Readonly<Partial<Record<keyof BenchmarkOptions, unknown>>> & { readonly json?: boolean };

export async function bench({ json = false, ...flags }: BenchFlags): Promise<void> {
  const report = await benchmark(optionsOf(flags));
  writeStdout(json ? `${jsonText(report)}\n` : text(report));
}

/** Those that were given, checked. */
function optionsOf(flags: BenchFlags): BenchmarkOptions {
  const checked = <Flag extends keyof BenchmarkOptions, T>(flag: Flag, check: (value: unknown) => T) =>
    (flags[flag] === undefined ? {} : { [flag]: check(flags[flag]) }) as { readonly [of in Flag]?: T };
  const natural = <Flag extends keyof BenchmarkOptions>(flag: Flag) => checked(flag, (value) => wholeNumber(flag, value, 1));
  const choice = <Flag extends keyof BenchmarkOptions, T extends string>(flag: Flag, allowed: readonly T[]) =>
    checked(flag, (value) => oneOf(flag, `${value}`, allowed));
  return {
    ...checked("shape", String),
    ...natural("steps"),
    ...natural("adapters"),
    ...natural("rows"),
    ...natural("length"),
    ...checked("trace", (value) => tracePath(`${value}`)),
    ...choice("targets", BENCHMARK_TARGETS),
    ...natural("rank"),
    ...choice("method", BENCHMARK_METHODS),
    ...checked("dropout", dropoutOf),
    ...choice("precision", PRECISIONS),
    ...choice("device", DEVICES),
    ...natural("tokens"),
    ...natural("stages"),
    ...choice("recomputation", ["auto", ...RECOMPUTATIONS] as const),
    ...natural("checkpoint"),
    ...choice("link", LINKS),
  };
}

function dropoutOf(value: unknown): number {
  if (typeof value === "number" && value >= 0 && value < 1) return value;
  throw new RequestError("cli.flag", `--dropout is ${value}`, "give it a number from 0, below 1");
}

function text(report: BenchmarkReport): string {
  const { shape, device, compute, adapters, rows, length, rank, recomputation, tflops, peak_tflops, share_of_peak } = report;
  const { bubble, simulated_bubble: simulated } = report;
  const bytes = (key: "planned_bytes" | "device_bytes" | "peak_rss_bytes") => formatBytes(report[key]);
  const families = Object.entries(report.kernel_ms).map(([family, ms]) => `${family} ${ms.toFixed(1)}`);
  return [
    `${shape} on ${device} in ${compute}: ${adapters} ${adapters === 1 ? "adapter" : "adapters"} of rank ${rank}, ${rows} x ${length} tokens each, recomputation ${recomputation}`,
    `  ${count(report.tokens_per_s)} tokens/s, ${report.ms} ms a step (median)`,
    `  ${tflops} TFLOP/s of the base model's products, ${(100 * share_of_peak).toFixed(0)} % of the ${peak_tflops} measured here`,
    `  kernels, ms: ${families.join(", ")}`,
    ...(bubble === null ? [] : [`  bubble ${percent(bubble)} of all stages' time, simulated ${percent(simulated ?? 0)}`]),
    `  memory: planned ${bytes("planned_bytes")}, on the device ${bytes("device_bytes")}, process at its peak ${bytes("peak_rss_bytes")}`,
    "",
  ].join("\n");
}
