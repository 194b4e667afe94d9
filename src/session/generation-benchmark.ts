// How fast this machine generates with a base model of a known shape, random weights and prompts, so that nothing needs to be
// downloaded. The same stage, passes and kernels as `mlora generate`. One more pass, which is not counted, is timed kernel by
// kernel.

import { now } from "../base/clock.ts";
import { invariant, RequestError } from "../base/errors.ts";
import { heldWeights } from "../base/precision.ts";
import { hash, Rng } from "../base/rng.ts";
import type { Sampling } from "../base/sample.ts";
import { maxOf, median, range, sizeOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import type { KernelSpan } from "../bus/messages.ts";
import { describeDevice } from "../engine/probe.ts";
import { fillUniform } from "../files/factors.ts";
import type { Placed, PoolAdapter } from "../methods/adapter.ts";
import { type FactorTensor, isOfTable, tensorsIn } from "../methods/layout.ts";
import { factorShape } from "../methods/registry.ts";
import { checkFormat } from "../plan/format.ts";
import { planGeneration } from "../plan/generation.ts";
import { exactOf, shapeOf } from "../plan/shapes.ts";
import { BENCHMARK_DEFAULTS, type BenchmarkWork, targetsOf } from "./benchmark-work.ts";
import { byKernel } from "./chrome-trace.ts";
import { Decoding, type Generation } from "./decoding.ts";
import { openGeneration } from "./open-generation.ts";
import { Tracer } from "./trace.ts";

export type GenerationBenchmarkOptions = Partial<
  Pick<BenchmarkWork, "adapters" | "rank" | "method" | "targets" | "device" | "precision">
> & {
  /** The base model's shape, by name. */
  readonly shape?: string;
  /** Sequences, in turn of each adapter; without adapters all are the base model's. */
  readonly sequences?: number;
  readonly promptTokens?: number;
  readonly newTokens?: number;
  readonly sampling?: Sampling;
  /** Times that all sequences are generated and measured. */
  readonly rounds?: number;
};

/** Every number, by name: plain data, as `mlora bench --generate --json` prints it. */
export type GenerationBenchmarkReport = Awaited<ReturnType<typeof benchmarkGeneration>>;

const GREEDY: Sampling = { temperature: 0, topK: 0, topP: 1 };
const NEVER: ReadonlySet<number> = new Set();

/** Throws a RequestError where this cannot be measured here, and what the stage fails with. */
export async function benchmarkGeneration(options: GenerationBenchmarkOptions) {
  const { shape = "smollm2-135m", sequences = 8, promptTokens = 64, newTokens = 128, rounds = 1, ...rest } = options;
  const { sampling = GREEDY, adapters: count = BENCHMARK_DEFAULTS.adapters, ...work } = rest;
  const spec = shapeOf(shape);
  if (promptTokens + newTokens > spec.maxPositions)
    throw new RequestError(
      "bench.length",
      `${counted(promptTokens + newTokens, "token")} of a sequence, and ${shape} has ${counted(spec.maxPositions, "position")}`,
      "lower --prompt-tokens or --new-tokens",
    );
  const { rank, targets, method, device: wantedDevice, precision } = { ...BENCHMARK_DEFAULTS, ...work };
  const ranks = typeof rank === "number" ? [rank] : rank;
  const adapters = range(count).map((i) => {
    const of = { rank: ranks[i % ranks.length]!, scale: 1, targets: targetsOf(spec, targets), method };
    return { ...of, name: `bench-${i}`, factors: randomFactors(spec, of, i) };
  });
  const device = describeDevice(wantedDevice, precision);
  const held = heldWeights(precision, device, exactOf(shape));
  checkFormat(held.format, spec);
  const wanted = range(sequences).map((i): Generation => {
    const rng = new Rng(i, 7);
    const prompt = range(promptTokens).map(() => rng.below(spec.vocab));
    return { adapter: count === 0 ? -1 : i % count, prompt, limit: newTokens, seed: i };
  });
  const sizes = wanted.map(({ adapter, prompt, limit }) => ({ adapter, prompt: prompt.length, limit }));
  const plan = planGeneration(spec, device, adapters, sizes, held.format, held);
  await using engine = await openGeneration(plan, { randomSeed: 1 }, adapters);

  /** The time of each pass, and of those that read prompts, in ms; the tokens of each sequence. */
  const generateAll = async (limit: number, passed?: (isReading: boolean) => Promise<void>) => {
    const decoding = new Decoding(engine);
    const found = wanted.map((): number[] => []);
    let got = 0;
    for (const [i, of] of wanted.entries())
      decoding.add({
        ...of,
        limit,
        sampling,
        stops: NEVER,
        got: ({ token }) => {
          got++;
          found[i]!.push(token);
        },
      });
    const [reading, extending] = [[] as number[], [] as number[]];
    const began = now();
    for (let last = began; !decoding.isIdle; last = now()) {
      const kind = await decoding.pass();
      (kind === "prompts" ? reading : extending).push(now() - last);
      await passed?.(kind === "prompts");
    }
    return { ms: now() - began, got, reading, extending, found };
  };

  await generateAll(Math.min(newTokens, WARM_UP));
  const measured: Awaited<ReturnType<typeof generateAll>>[] = [];
  for (const _ of range(rounds)) measured.push(await generateAll(newTokens));
  const tracer = await Tracer.open(engine.bus);
  const kernels = { reading: [] as KernelSpan[], extending: [] as KernelSpan[] };
  await tracer.record({ passes: false, kernels: true });
  await generateAll(Math.min(newTokens, 2), async (isReading) => {
    await tracer.collect();
    for (const trace of tracer.traces) (isReading ? kernels.reading : kernels.extending).push(...trace.kernels.splice(0));
  });
  await tracer.record({ passes: false, kernels: false });
  const passes = measured.flatMap(({ extending }) => extending);
  const speeds = measured.map(({ ms, got }) => (1000 * got) / ms);
  return {
    shape,
    device: device.name,
    compute: device.compute,
    held: held.format,
    adapters: adapters.length,
    ranks: adapters.map(({ rank }) => rank),
    targets: adapters[0]?.targets ?? [],
    sequences,
    /** Sequences that the device's memory holds together. */
    together: plan.stages[0].sizes.cache.sequences,
    prompt_tokens: promptTokens,
    new_tokens: newTokens,
    sampling,
    rounds,
    /** New tokens of all sequences by the time from the first pass, prompts among it: the median round. */
    tokens_per_s: Math.round(median(speeds)),
    round_ms: measured.map(({ ms }) => rounded(ms, 1)),
    /** Of passes that extend each sequence by a token, and of all that read prompts in a round. */
    pass_ms: rounded(median(passes), 3),
    longest_pass_ms: rounded(maxOf(passes), 3),
    reading_ms: rounded(median(measured.map(({ reading }) => sum(reading))), 1),
    reading_passes: measured[0]!.reading.length,
    /** Of all prompts' passes, and of one that extends; empty where the device takes no times. */
    reading_kernel_ms: timesOf(kernels.reading),
    kernel_ms: timesOf(kernels.extending),
    /** A hash of all tokens: the same sequences give the same. */
    tokens_hash: hash(...measured[0]!.found.map((tokens) => hash(...tokens))),
    peak_rss_bytes: process.resourceUsage().maxRSS * 1024,
  };
}

/** New tokens of each sequence before what is measured. */
const WARM_UP = 3;

/** Uniform within bounds that keep what an adapter adds small next to what the base model has. */
function randomFactors(spec: ModelSpec, adapter: Placed & Pick<PoolAdapter, "method">, seed: number): FactorTensor[] {
  return tensorsIn(spec, { from: 0, to: spec.layers }, adapter).map((at, i): FactorTensor => {
    invariant(!isOfTable(at), "an adapter of a benchmark that trains a table");
    const values = new Float32Array(sizeOf(factorShape(spec, at.linear, at.factor, adapter.rank, at.layer)));
    fillUniform(values, hash(seed, i), 1 / Math.sqrt(spec.hidden));
    return { ...at, values };
  });
}

const timesOf = (kernels: readonly KernelSpan[]): Record<string, number> =>
  Object.fromEntries(Object.entries(byKernel(kernels)).map(([name, ms]) => [name, rounded(ms, 3)]));

const rounded = (value: number, digits: number): number => Number(value.toFixed(digits));
