// `mlora bench --generate`: how fast this machine generates with a base model of a known shape.

import { RequestError } from "../base/errors.ts";
import { PRECISIONS } from "../base/precision.ts";
import { jsonText, writeStdout } from "../base/terminal.ts";
import { count, counted, formatBytes } from "../base/units.ts";
import {
  benchmarkGeneration,
  type GenerationBenchmarkOptions,
  type GenerationBenchmarkReport,
} from "../session/benchmark/generation.ts";
import { BENCHMARK_METHODS, BENCHMARK_TARGETS } from "../session/benchmark/work.ts";
import { type Checks, choice, given, MOST, natural, ranksOf } from "./bench-flags.ts";
import { DEVICES, wholeNumber } from "./flags.ts";
import { type SamplingFlags, samplingOf } from "./sampling-flags.ts";

type Options = Omit<GenerationBenchmarkOptions, "sampling">;
/** As they were given. */
export type BenchGenerateFlags = Readonly<Record<string, unknown>> & SamplingFlags;

const CHECKS: Checks<Options> = {
  shape: String,
  sequences: natural("sequences", MOST.rows),
  promptTokens: natural("prompt-tokens", MOST.tokens),
  newTokens: natural("new-tokens", MOST.tokens),
  rounds: natural("rounds"),
  adapters: (value) => wholeNumber("adapters", value, 0, MOST.adapters),
  targets: choice("targets", BENCHMARK_TARGETS),
  rank: ranksOf,
  method: choice("method", BENCHMARK_METHODS),
  precision: choice("precision", PRECISIONS),
  device: choice("device", DEVICES),
};
/** What the command takes next to them. */
const OTHERS = ["generate", "json", "temperature", "topP", "topK", "--"];

/** The flags of `mlora bench` that only generation has. */
export const GENERATION_FLAGS = ["sequences", "promptTokens", "newTokens", "rounds", "temperature", "topP", "topK"];

export async function benchGenerate(flags: BenchGenerateFlags): Promise<void> {
  const report = await benchmarkGeneration(generationOptionsOf(flags));
  writeStdout(flags["json"] === true ? `${jsonText(report)}\n` : text(report));
}

/** The flags of a benchmark of generation, checked. Throws a RequestError where one is wrong, or is of training. */
export function generationOptionsOf(flags: BenchGenerateFlags): Partial<GenerationBenchmarkOptions> {
  for (const flag in flags)
    if (!(flag in CHECKS) && !OTHERS.includes(flag))
      throw new RequestError("cli.flag", `--${flag} was given with --generate`, "it says how adapters train: leave it out");
  return { ...given(CHECKS, flags), sampling: samplingOf(flags) };
}

function text(report: GenerationBenchmarkReport): string {
  const { shape, device, compute, adapters, ranks, sequences, prompt_tokens, new_tokens } = report;
  const listed = (kernels: Readonly<Record<string, number>>): string =>
    Object.entries(kernels)
      .map(([name, ms]) => `${name} ${ms.toFixed(2)}`)
      .join(", ");
  const [reading, extending] = [listed(report.reading_kernel_ms), listed(report.kernel_ms)];
  const of = adapters === 0 ? "no adapter" : `${counted(adapters, "adapter")} of rank ${[...new Set(ranks)].join(", ")}`;
  return [
    `${shape} on ${device} in ${compute}: ${of}, ${counted(sequences, "sequence")} of ${prompt_tokens} + ${counted(new_tokens, "token")}`,
    `  ${count(report.tokens_per_s)} tokens/s; a pass that extends all ${report.pass_ms} ms (median), prompts ${report.reading_ms} ms in ${counted(report.reading_passes, "pass", "passes")}`,
    ...(reading === "" ? [] : [`  kernels of the prompts, ms: ${reading}`]),
    ...(extending === "" ? [] : [`  kernels of a pass that extends all, ms: ${extending}`]),
    `  process at its peak ${formatBytes(report.peak_rss_bytes)}`,
    "",
  ].join("\n");
}
