// Addresses of GPU kernels in passes of 131,072 rows: nothing that one depends on passes 2^31 in 32 bits (scripts/offsets.py).
// The launches are those of a device that runs nothing, for shapes of all families.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { DryGpu } from "../../scripts/dry-gpu.ts";
import type { WeightFormat } from "../../src/base/precision.ts";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor } from "../../src/engine/weights/weights.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { pack } from "../../src/schedule/pack.ts";
import { kernelRows } from "../helpers/kernel-rows.ts";
import { needs } from "../helpers/needs.ts";
import { adapterOn, inExperts, LINEARS, tinySizes, wholeModel } from "../helpers/tiny.ts";

const ROOT = join(import.meta.dir, "..", "..");

async function offsets(args: readonly string[], input = ""): Promise<readonly string[]> {
  const command = [join(ROOT, ".venv/bin/python"), "-B", join(ROOT, "scripts/offsets.py"), ...args];
  const child = Bun.spawn(command, { stdin: new Blob([input]), stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code > 1 || (code === 1 && out === "")) throw new Error(err);
  return out.split("\n").filter((line) => line !== "");
}

const ROWS = 131_072;
const GPUS = [
  ["bf16", { major: 9, minor: 0 }],
  ["bf16", { major: 8, minor: 9 }],
  ["f32", { major: 9, minor: 0 }],
] as const;

/** Shapes whose layers differ, each with the largest widths of its kind. */
const LARGE = [
  ...["llama3-8b", "llama3-70b", "qwen3-8b", "qwen3.5-27b", "qwen3-30b-a3b", "gpt-oss-20b", "phi4-14b"],
  ...["lfm2-1.2b", "granite4-h-micro", "gemma3-4b", "gemma4-e4b", "gemma4-12b"],
];

/** Place in the list of variants, programs, and the arguments that are numbers. */
type Launch = {
  readonly row: number;
  readonly grid: readonly number[];
  readonly args: Readonly<Record<string, number>>;
};

/** The first layers of a model: enough for each kind that it has. */
function firstLayers(spec: ModelSpec): ModelSpec {
  const layers = Math.min(spec.layers, 6);
  const cut: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(spec))
    if (Array.isArray(value) && value.length === spec.layers) cut[key] = value.slice(0, layers);
  return { ...spec, ...cut, layers, maxPositions: Math.max(spec.maxPositions, ROWS) };
}

const filled: FillTensor = (_name, _to, { packed }) => packed?.weight.format === "mxfp4";

async function train(gpu: DryGpu, spec: ModelSpec, adapters: readonly PoolAdapter[], format: WeightFormat, tokens: number) {
  const expertFormat: WeightFormat = spec.experts ? format : "dense";
  const sizes = tinySizes(gpu, spec, adapters, {
    ...{ layers: spec.layers, rows: ROWS, targets: ROWS, chunk: 1024, positions: tokens, recomputation: "full" },
    ...{ format: spec.experts ? "dense" : format, expertFormat },
  });
  using stage = await Stage.open(gpu, { spec, layerRange: wholeModel(spec), sizes }, filled, { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) await stage.admit(slot, { ...adapter, seed: 0, init: "default" });
  const each = ROWS / tokens / adapters.length;
  const sample = { ids: Int32Array.from({ length: tokens + 1 }, (_, i) => i % 64), mask: new Uint8Array(tokens + 1).fill(1) };
  const segments = adapters.map((_, adapter) => {
    return { adapter, samples: range(each).map(() => sample), seed: 1, step: 0, dropout: 0.1, firstRow: 0, weight: 0.1 };
  });
  const batch = pack(segments, adapters.length, gpu.rowTile);
  await stage.forward(0, batch);
  await stage.backward(0);
  await stage.pool.gradSquares(adapters.map((_, slot) => slot));
  const rates = { learningRate: 1e-3, ratio: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, coefficient: 1 };
  await stage.step(adapters.map((_, adapter) => ({ adapter, t: 1, ...rates })));
}

/** All different launches, and the names of what is launched. */
async function largeLaunches(): Promise<{
  readonly launches: readonly Launch[];
  readonly kernels: ReadonlySet<string>;
}> {
  const rows = kernelRows();
  const places = new Map(rows.map((row, i) => [row, i] as const));
  const found = new Map<string, Launch>();
  for (const [compute, capability] of GPUS) {
    const gpu = () =>
      new DryGpu(compute, capability, rows, (row, grid, args) => {
        if (!grid || !args) return;
        const numbers = Object.entries(args).filter((of): of is [string, number] => Number.isInteger(of[1]));
        const launch = { row: places.get(row)!, grid: grid.map((size) => size ?? 1), args: Object.fromEntries(numbers) };
        found.set(JSON.stringify(launch), launch);
      });
    for (const name of compute === "f32" ? LARGE.slice(0, 1) : LARGE) {
      const spec = firstLayers(shapeOf(name));
      const wide = { rank: 256, scale: 1, targets: LINEARS };
      const one = spec.experts ? inExperts(spec)[0]! : adapterOn(spec, wide);
      await train(gpu(), spec, [one], spec.experts?.isMxfp4 ? "mxfp4" : "dense", ROWS);
      if (name !== "llama3-8b") continue;
      const methods = (["lora", "dora", "vera", "lora"] as const).map((method, i) => {
        return adapterOn(spec, { rank: [16, 64, 256, 5][i]!, scale: 1, targets: LINEARS, method, projectionSeed: 1 });
      });
      for (const format of ["dense", "int8", "nf4", "fp8", "nf4-fp8"] as const)
        if (gpu().formats.includes(format)) await train(gpu(), spec, methods, format, 4096);
      const product = { rank: 16, scale: 1 };
      const tables = { embedding: product, head: product };
      await train(gpu(), spec, [{ ...adapterOn(spec, wide), tables }], "dense", 4096);
    }
  }
  const launches = [...found.values()];
  return { launches, kernels: new Set(launches.map(({ row }) => rows[row]!.name)) };
}

needs("kernels")("addresses of GPU kernels", () => {
  test("an address that passes 2^31 is found: of rows, of a loop, of a table, of elements; and none that does not", async () => {
    const found = await offsets(["--file", join(ROOT, "tests/helpers/offsets_cases.py")]);
    const kernels = new Set(found.map((line) => line.split(" ")[0]));
    expect([...kernels].sort()).toEqual(["narrow_flat", "narrow_places", "narrow_rows", "narrow_walk"]);
  });

  test("no kernel's addresses pass 2^31 in 32 bits in passes of 131,072 rows", async () => {
    const { launches, kernels } = await largeLaunches();
    expect(kernels.size).toBeGreaterThan(90);
    expect(await offsets([], launches.map((launch) => JSON.stringify(launch)).join("\n"))).toEqual([]);
  });
});
