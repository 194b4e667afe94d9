// Sequences that are extended a row each, of bases in each format, mixtures, hybrids, and adapters of each kind: near those
// that are extended by tiles, and with the same bits alone and among others.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { localBus } from "../../src/bus/local.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { decode, prefill } from "../../src/schedule/decode.ts";
import { engineOver, generate } from "../../src/session/decoding/generate.ts";
import { crowdTables } from "../helpers/crowd.ts";
import { ADAPTERS, nextLogits, tinyGenerator } from "../helpers/generation.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";
import { ownHeads } from "../helpers/heads.ts";
import { needs } from "../helpers/needs.ts";
import { inExperts } from "../helpers/tiny.ts";

/** Extends sequences by tiles. */
class TileDevice extends CudaDevice {
  override readonly hasFewRows = false;
}

const adaptersFor = (spec: ModelSpec): readonly PoolAdapter[] => [
  ...ADAPTERS,
  ...(spec.experts ? inExperts(spec) : []),
  { rank: 6, scale: 1, targets: ["q_proj", "o_proj", "up_proj"], method: "vera" },
  ...range(5).flatMap((i): PoolAdapter[] => {
    const tables = crowdTables(i, spec);
    return tables ? [{ ...ADAPTERS[0]!, tables }] : [];
  }),
];

const CASES = [
  ...(["dense", "nf4", "int8", "fp8"] as const).flatMap((format) => [
    ["llama", "bf16", format],
    ["qwen3moe", "bf16", format],
  ]),
  ["gemma4", "bf16", "dense"],
  ...["llama", "qwen3moe", "gptOss", "nemotronHmoe", "qwen3next", "lfm2moe", "gemma4"].map((family) => [
    family,
    "f32",
    "dense",
  ]),
] as [family: string, compute: "bf16" | "f32", format: "dense" | "nf4" | "int8" | "fp8"][];

const bytes = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

needs("gpu")("sequences that are extended by row", () => {
  test.each(CASES)("%s in %s, %s", async (family, compute, format) => {
    const plain = { ...gpuFamilies, ...sparseGpuFamilies }[family]!;
    const spec = { ...plain, ...(format === "dense" ? {} : { hidden: 128, intermediate: 192 }) }; // whole blocks of codes
    const adapters = adaptersFor(spec);
    using rows = await tinyGenerator(new CudaDevice(compute), spec, { sequences: 40, format }, adapters);
    using tiles = await tinyGenerator(new TileDevice(compute), spec, { sequences: 40, format }, adapters);
    const sequences = range(27).map((i) => {
      const adapter = (i % (adapters.length + 1)) - 1;
      return { adapter, ids: range(3 + (i % 5)).map((j) => (7 * i + 3 * j + 1) % spec.vocab), firstRow: 128 * i };
    });
    /** The next logits of these, after their prompts were read. */
    const logitsOf = async (generator: typeof rows, of: typeof sequences) => {
      for (const each of of)
        await generator.run(prefill([{ ...each, ids: each.ids.slice(0, -1) }], adapters.length, generator.tile));
      return await nextLogits(generator, decode(of, adapters.length, generator.tile));
    };
    const [all, want] = [await logitsOf(rows, sequences), await logitsOf(tiles, sequences)];
    const apart = all.map((found, i) => Math.hypot(...want[i]!.map((value, j) => value - found[j]!)) / Math.hypot(...want[i]!));
    // Rounding may turn the choice of an expert over: then most are near, and few are not.
    const near = [...apart].sort((a, b) => a - b)[Math.floor(spec.experts ? 0.7 * apart.length : apart.length - 1)]!;
    expect(near, apart.map((of) => of.toExponential(1)).join(" ")).toBeLessThan(
      compute === "f32" ? 1e-4 : format === "fp8" ? 0.2 : 0.1,
    );
    // The first pass of its kind is recorded the second time, and its record repeated, in which kernels overlap.
    for (const _ of range(3)) expect((await logitsOf(rows, sequences)).map(bytes)).toEqual(all.map(bytes));
    for (const i of [...range(adapters.length + 1), 26]) {
      const [alone] = await logitsOf(rows, [sequences[i]!]);
      expect(bytes(alone!), `sequence ${i} alone`).toBe(bytes(all[i]!));
    }
  });
});

needs("gpu")("passes that follow one under way", () => {
  test.each([
    ["llama", "bf16", 0],
    ["llama", "bf16", 0.9],
    ["qwen3moe", "bf16", 0.9],
    ["gemma4", "f32", 0.9],
  ] as const)("%s in %s, temperature %d: the tokens of passes one by one", async (family, compute, temperature) => {
    const spec = { ...gpuFamilies, ...sparseGpuFamilies }[family]!;
    using generator = await tinyGenerator(new CudaDevice(compute), spec, { sequences: 12, capacity: 96 });
    await using bus = localBus(
      [{ ...generator.stage.handlers(), open: () => Promise.reject(new Error("a stage that is open")) }],
      () => Promise.resolve(),
    );
    const wanted = range(30).map((i) => ({
      ...{ adapter: (i % (ADAPTERS.length + 1)) - 1, seed: i, limit: 1 + ((11 * i) % 40) },
      prompt: range(1 + ((7 * i) % 30)).map((j) => (5 * i + 3 * j + 1) % spec.vocab),
    }));
    const run = async (follows: boolean, stops: ReadonlySet<number>) => {
      const found = wanted.map(() => [] as (readonly [token: number, logProb: number, drawn: number])[]);
      const sampling = { temperature, topK: 0, topP: 0.95 };
      for await (const next of generate({ ...engineOver(bus, generator), follows }, wanted, sampling, stops))
        found[next.index]!.push([next.token, next.logProb, next.drawnLogProb]);
      return found;
    };
    const all = await run(false, new Set());
    const stops = new Set(all.flatMap((of) => of.map(([token]) => token)).filter((_, i) => i % 37 === 5));
    for (const ends of [new Set<number>(), stops]) {
      const plain = await run(false, ends);
      for (const _ of range(3)) expect(await run(true, ends)).toEqual(plain);
    }
  });
});

needs("gpu")("heads of adapters", () => {
  for (const [family, Kind, compute] of [
    ["llama", CudaDevice, "bf16"],
    ["llama", TileDevice, "f32"],
    ["gemma3", CudaDevice, "f32"],
    ["gemma3", TileDevice, "bf16"],
  ] as const)
    ownHeads(`${family} in ${compute}, ${Kind.name}`, () => new Kind(compute), gpuFamilies[family]!, true);
});
