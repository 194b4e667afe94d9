// The table of compiled kernels and its launchers, on a GPU that launches nothing: each launch finds its row, and each row is
// launched by something, so that nothing is compiled in vain.

import { expect, test } from "bun:test";
import { DryGpu } from "../../scripts/dry-gpu.ts";
import { multipliesInFp8, type WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { Arena } from "../../src/device/arena.ts";
import type { Argument, Grid } from "../../src/device/cuda/kernel.ts";
import { compiled } from "../../src/device/cuda/kernels.ts";
import type { KernelRow, Kind } from "../../src/device/cuda/manifest.ts";
import { titleOf, VariantSet } from "../../src/device/cuda/variants.ts";
import { Stage } from "../../src/engine/stage.ts";
import { weightsOf } from "../../src/engine/weights/weight-source.ts";
import type { FillTensor } from "../../src/engine/weights/weights.ts";
import { linearsOfModel } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { convolutionDecode, convolutionKeep } from "../../src/ops/convolution.ts";
import { attentionDecode, cacheWrite } from "../../src/ops/decode.ts";
import { deltaDecode } from "../../src/ops/deltanet.ts";
import { randomFill } from "../../src/ops/fill.ts";
import { gegluBackward } from "../../src/ops/geglu.ts";
import { groupnormBackward, groupnormForward } from "../../src/ops/groupnorm.ts";
import { poolBackward, poolForward } from "../../src/ops/pool.ts";
import { shortconvDecode, shortconvKeep } from "../../src/ops/shortconv.ts";
import { stateSpaceDecode } from "../../src/ops/statespace.ts";
import { copyColumns, valueNormBackward, valueNormForward } from "../../src/ops/values.ts";
import { pack } from "../../src/schedule/pack.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";
import { kernelRows, kernelSignatures } from "../helpers/kernel-rows.ts";
import { launchFew, launchFewExperts } from "../helpers/launch-few.ts";
import { adapterOn, LINEARS, placedOn, randomTokens, tinyExperts, tinySizes, tinySpec, wholeModel } from "../helpers/tiny.ts";

const ROWS = kernelRows();
const SIGNATURES = kernelSignatures();
const MANY = { family: "mixtral", intermediate: 64 };
const SMALL_HEADS: readonly (readonly [headDim: number, stateDim: number])[] = [[32, 20]]; // not of whole 8
const BIASES = { qkvBias: true, oBias: true, mlpBias: true };
/** Hopper, the oldest GPU with fp8, and what tests compute in. */
const GPUS = [
  ["tma", "bf16", { major: 9, minor: 0 }],
  ["ptr", "bf16", { major: 8, minor: 9 }],
  ["f32", "f32", { major: 9, minor: 0 }],
] as const;

const newSpec = (changes: Partial<ModelSpec>): ModelSpec =>
  tinySpec({
    layers: 2,
    windows: [null, null],
    heads: 2,
    kvHeads: 1,
    vocab: 64,
    hidden: 64,
    intermediate: 64,
    headDim: 64,
    ...changes,
  });

/** Element types by Triton's; kernels that copy bits take another for the same bytes. */
const TYPES: Readonly<Record<string, string>> = { bf16: "bf16", fp32: "f32", i64: "i64" };

/** What a launch gives a kernel that is not of the kind that its parameters are, or that it leaves out. */
function misfits(row: KernelRow, grid: Grid, args: Readonly<Record<string, Argument>>): string[] {
  const wrong = Object.entries(SIGNATURES[ROWS.indexOf(row)]!).filter(([name, type]) => {
    const value = args[name];
    const [, element, block] = /^(?:\*|tensordesc<)(\w+)(?:\[([\d, ]*)\].*>)?$/.exec(type) ?? [];
    if (element === undefined) return type === "fp32" ? typeof value !== "number" : !Number.isInteger(value);
    if (value === undefined || typeof value === "number") return value === undefined || block !== undefined;
    if (value === null) return false;
    if (value.ptr % 16 !== 0) return true; // kernels are compiled for pointers that are aligned so
    return (TYPES[element] ?? value.dtype) !== value.dtype || (block && block.split(",").length !== value.shape.length);
  });
  const hasPrograms = grid.every((size) => Number.isInteger(size) && size! > 0);
  return [...wrong.map(([name, type]) => `${name} ${type}`), ...(hasPrograms ? [] : [`grid ${grid}`])];
}

/** Weights are as they are; of files in mxfp4 they need no packing. */
const isPackedAlready: FillTensor = (_name, _to, { packed }) => packed?.weight.format === "mxfp4";

/** All that a stage does with an adapter: its beginning, a step, an evaluation. */
async function train(
  gpu: DryGpu,
  spec: ModelSpec,
  adapter: PoolAdapter,
  format: WeightFormat,
  { expertFormat = format, rows = 1 }: { readonly expertFormat?: WeightFormat; readonly rows?: number } = {},
): Promise<void> {
  const sizes = tinySizes(gpu, spec, [adapter], { layers: spec.layers, format, expertFormat, rows: 1280, targets: 1280 });
  const config = { spec, layerRange: wholeModel(spec), sizes };
  using stage = await Stage.open(gpu, config, isPackedAlready, { previous: null, next: null });
  await stage.admit(0, { ...adapter, seed: 0, init: "default" });
  const samples = range(rows).map((i) => randomTokens(new Rng(4, i), spec.vocab, 9));
  const segment = { adapter: 0, samples, seed: 1, step: 0, dropout: 0.1, firstRow: 0, weight: 0.1 };
  const batch = pack([segment], 1, gpu.rowTile);
  await stage.forward(0, batch);
  await stage.backward(0);
  await stage.evaluate(batch);
  await stage.pool.gradSquares([0]);
  const rates = { learningRate: 1e-3, ratio: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, coefficient: 1 };
  await stage.step([{ adapter: 0, t: 1, ...rates }]);
}

/** What is left of the contract: generation, pooling, random weights. */
function launchOthers(gpu: DryGpu, spec: ModelSpec): void {
  const { heads, kvHeads, headDim } = spec;
  using arena = new Arena(gpu, 1 << 20, "a test");
  const qkv = arena.tensor(gpu.compute, 4, (heads + 2 * kvHeads) * headDim);
  const cache = arena.tensor(gpu.compute, 8, 2 * kvHeads * headDim);
  const [places, bounds] = [arena.tensor("i32", 4), arena.tensor("i32", 4, 2)];
  const out = arena.tensor(gpu.compute, 4, heads * headDim);
  const [pages, tiles] = [arena.tensor("i32", 2), arena.tensor("i32", 1, 2)];
  cacheWrite(gpu, { qkv, places, pages, cache, heads, kvHeads, headDim });
  const attending = { qkv, cache, pages, bounds, tiles, areAllTiled: false, sinks: null, out, heads, kvHeads, headDim };
  attentionDecode(gpu, { ...attending, scale: 1, window: 0, cap: 0 });
  const own = {
    qkv: arena.tensor(gpu.compute, 4, 3 * kvHeads * headDim),
    out: arena.tensor(gpu.compute, 4, kvHeads * headDim),
  };
  attentionDecode(gpu, { ...attending, ...own, heads: kvHeads, scale: 1, window: 0, cap: 0 }); // each head has its own keys
  const [x, y] = [arena.tensor(gpu.compute, 8, 64), arena.tensor(gpu.compute, 4, 64)];
  poolForward(gpu, { x, bounds, y });
  poolBackward(gpu, { dy: y, bounds, dx: x });
  randomFill(gpu, { out: x, seed: 1, scale: 1 });
  const [f32, values] = [arena.tensor("f32", 4, 64), arena.tensor(gpu.compute, 4, (heads + 2 * kvHeads) * headDim)];
  valueNormForward(gpu, { x: qkv, y: values, isKey: false, eps: 1e-6, heads, kvHeads, headDim });
  valueNormBackward(gpu, { dy: values, x: qkv, dx: qkv, isKey: false, eps: 1e-6, heads, kvHeads, headDim });
  copyColumns(gpu, { from: y, to: y, adds: false });
  copyColumns(gpu, { from: y, to: f32, adds: true });
  copyColumns(gpu, { from: f32, to: y, adds: true });
  gegluBackward(gpu, { dh: y, gate: y, up: y, dgate: y, dup: null });
}

/** What is left of linear attention: generation. */
function launchLinear(gpu: DryGpu, { heads }: NonNullable<ModelSpec["delta"]>): void {
  const { keyHeads, valueHeads, keyDim, valueDim } = heads;
  using arena = new Arena(gpu, 1 << 24, "a test");
  const [rows, channels] = [4, 2 * keyHeads * keyDim + valueHeads * valueDim];
  const [mixed, y] = [arena.tensor(gpu.compute, rows, channels), arena.tensor(gpu.compute, rows, channels)];
  const [bounds, places] = [arena.tensor("i32", rows, 2), arena.tensor("i32", rows)];
  const kept = { places, window: arena.tensor(gpu.compute, 2, 3, channels), capacity: 8 };
  convolutionKeep(gpu, { x: mixed, bounds, ...kept });
  convolutionDecode(gpu, { x: mixed, weight: arena.tensor("f32", channels, 4), bias: null, y, ...kept });
  const state = arena.tensor("f32", 2, valueHeads, keyDim, valueDim);
  const vectors = { decay: arena.tensor("f32", valueHeads), bias: arena.tensor("f32", valueHeads) };
  const gates = arena.tensor(gpu.compute, rows, 2 * valueHeads);
  const out = arena.tensor(gpu.compute, rows, valueHeads * valueDim);
  deltaDecode(gpu, { mixed, gates, ...vectors, places, state, out, capacity: 8, ...heads });
}

/** What is left of Mamba 2: generation, but for the convolution. */
function launchSpace(gpu: DryGpu, { heads: of, limits }: NonNullable<ModelSpec["mamba"]>): void {
  const { heads, headDim, groups, stateDim } = of;
  using arena = new Arena(gpu, 1 << 26, "a test");
  const mixed = arena.tensor(gpu.compute, 4, heads * headDim + 2 * groups * stateDim);
  const [steps, out] = [arena.tensor(gpu.compute, 4, heads), arena.tensor(gpu.compute, 4, heads * headDim)];
  const [decay, bias, skip] = [arena.tensor("f32", heads), arena.tensor("f32", heads), arena.tensor("f32", heads)];
  const kept = { places: arena.tensor("i32", 4), state: arena.tensor("f32", 2, heads, headDim, stateDim), capacity: 8 };
  stateSpaceDecode(gpu, { mixed, steps, decay, bias, skip, ...kept, out, ...of, ...limits });
}

/** Norms of groups of each width. */
function launchNorms(gpu: DryGpu): void {
  for (const width of [1024, 4096, 8192, 16384]) {
    using arena = new Arena(gpu, 1 << 20, "a test");
    const [x, gate] = [arena.tensor(gpu.compute, 2, width), arena.tensor(gpu.compute, 2, width)];
    const of = { x, gate, weight: arena.tensor("f32", width), groups: 1, eps: 1e-6 };
    groupnormForward(gpu, { ...of, y: x });
    groupnormBackward(gpu, { ...of, dy: x, dx: x, dgate: gate });
  }
}

/** What is left of short convolutions: generation. */
function launchConvolved(gpu: DryGpu, { hidden: C }: ModelSpec): void {
  using arena = new Arena(gpu, 1 << 20, "a test");
  const [bcx, weight, y] = [arena.tensor(gpu.compute, 4, 3 * C), arena.tensor("f32", C, 3), arena.tensor(gpu.compute, 4, C)];
  const [bounds, places] = [arena.tensor("i32", 4, 2), arena.tensor("i32", 4)];
  const kept = { places, window: arena.tensor(gpu.compute, 2, 2, C), capacity: 8 };
  shortconvKeep(gpu, { bcx, bounds, ...kept });
  shortconvDecode(gpu, { bcx, weight, y, ...kept });
}

async function launchedBy([kind, compute, capability]: (typeof GPUS)[number]): Promise<ReadonlySet<KernelRow>> {
  const found = new Set<KernelRow>();
  const open = () =>
    new DryGpu(compute, capability, ROWS, (row, grid, args) => {
      found.add(row);
      const wrong = grid && args ? misfits(row, grid, args) : [];
      if (wrong.length > 0) throw new Error(`${titleOf(row)}: ${wrong.join("; ")}`);
    });
  const formats = open().formats.filter((format) => format !== "mxfp4"); // of experts alone
  const all = (rank: number, method?: "dora" | "vera"): PoolAdapter => ({
    rank,
    scale: 1,
    targets: LINEARS,
    ...(method && { method }),
  });
  const aligned = newSpec({ intermediate: 128, heads: 2, kvHeads: 2 }); // boundaries at multiples of 128
  const unaligned = newSpec({ intermediate: 72, kvHeads: 1 });
  for (const format of formats)
    for (const spec of [aligned, unaligned].flatMap((plain) => [plain, { ...plain, ...BIASES }])) {
      await train(open(), spec, { rank: 4, scale: 1, targets: ["q_proj"] }, format); // groups without adapters
      await train(open(), spec, { rank: 4, scale: 1, targets: ["down_proj"] }, format);
      if (format === "dense" || multipliesInFp8(format))
        for (const rank of [4, 24, 256])
          for (const method of ["dora", undefined] as const) await train(open(), spec, all(rank, method), format);
      else await train(open(), spec, all(4, "dora"), format);
    }
  await train(open(), aligned, all(4, "vera"), "dense");
  await train(open(), aligned, { ...all(4), optimizer: "adamw-8bit" }, "dense");
  const tokens = { tokens: range(aligned.vocab) };
  for (const tables of [
    { embedding: tokens, head: tokens },
    { embedding: { rank: 4, scale: 1 }, head: { rank: 300, scale: 1 } },
  ])
    await train(open(), { ...aligned, tiedEmbeddings: true }, { ...all(4), tables }, "dense", { rows: 40 });
  const sizes = [{ hidden: 4096 }, { hidden: 8192 }, { hidden: 16384 }, { headDim: 128 }, { headDim: 40 }];
  for (const size of sizes)
    for (const qkNorm of [false, true]) {
      const spec = newSpec({ ...size, qkNorm });
      await train(open(), spec, { rank: 4, scale: 1, targets: ["q_proj"] }, "dense");
      launchOthers(open(), spec);
    }
  const gemma = { family: "gemma3", qkNorm: true, embeddingScale: 8 };
  for (const size of [{}, { hidden: 4096 }, { hidden: 8192 }, { hidden: 16384 }])
    await train(open(), newSpec({ ...gemma, ...size }), { rank: 4, scale: 1, targets: ["q_proj"] }, "dense");
  const shared = { headDim: 256, heads: 8, kvHeads: 1 }; // its keys' gradients are summed in shares
  for (const size of [{ headDim: 256 }, shared, { headDim: 512 }, { headDim: 200, attentionCap: 50, logitCap: 30 }])
    for (const qkNorm of [false, true]) {
      const spec = newSpec({ ...gemma, ...size, qkNorm });
      await train(open(), spec, { rank: 4, scale: 1, targets: ["q_proj"] }, "dense");
      launchOthers(open(), spec);
    }
  for (const spec of [aligned, newSpec(gemma)])
    for (const rank of [4, 24]) await train(open(), spec, { rank, scale: 1, targets: ["down_proj"] }, "dense");
  const few = { rank: 4, scale: 1, targets: ["q_proj"] } as const;
  for (const heads of [2, 64, 128]) await train(open(), newSpec({ family: "olmo2", heads, kvHeads: 1 }), few, "dense");
  const muse = { family: "muse_glimmer", layerRopes: [0, null], embeddingNorm: 1e-5, postNormEps: 1e-8, logitCap: 20 };
  await train(open(), newSpec(muse), few, "dense");
  if (formats.includes("fp8"))
    // whose rows are rounded by their width
    for (const intermediate of [6144, 12288, 20480, 24576, 32768])
      for (const adapter of [few, { ...few, targets: ["gate_proj", "down_proj"] } as const])
        await train(open(), newSpec({ intermediate }), adapter, "fp8");
  for (const size of compute === "f32" ? [32] : [128, 24]) {
    const delta = { heads: { keyHeads: 2, valueHeads: 8, keyDim: size, valueDim: size }, layers: [true, false] };
    await train(
      open(),
      newSpec({ family: "qwen3_5", layerRopes: [null, 0], delta }),
      { ...few, targets: ["down_proj"] },
      "dense",
    );
    launchLinear(open(), delta);
  }
  await train(open(), sparseGpuFamilies["gemma4"]!, { rank: 4, scale: 1, targets: ["q_proj", "down_proj"] }, "dense");
  await train(open(), sparseGpuFamilies["lfm2"]!, adapterOn(sparseGpuFamilies["lfm2"]!, few), "dense");
  launchConvolved(open(), sparseGpuFamilies["lfm2"]!);
  const latents = sparseGpuFamilies["deepseekV2"]!;
  await train(open(), latents, placedOn(latents, { rank: 4, scale: 1, targets: linearsOfModel(latents) }), "dense");
  const nemotron = sparseGpuFamilies["nemotronH"]!;
  for (const [headDim, stateDim] of compute === "f32" ? SMALL_HEADS : ([[64, 128], [80, 128], ...SMALL_HEADS] as const)) {
    const mamba = { ...nemotron.mamba!, heads: { heads: 16, headDim, groups: 2, stateDim } };
    await train(open(), { ...nemotron, mamba }, adapterOn(nemotron, few), "dense");
    launchSpace(open(), mamba);
  }
  const squares = sparseGpuFamilies["nemotronHmoe"]!;
  await train(open(), squares, placedOn(squares, { rank: 4, scale: 1, targets: linearsOfModel(squares) }), "dense");
  launchNorms(open());
  for (const family of ["mixtral", "gptOss", "qwen3moe", "qwen3next"]) {
    const spec = sparseGpuFamilies[family]!;
    const everywhere: PoolAdapter = placedOn(spec, { rank: 4, scale: 1, targets: linearsOfModel(spec) });
    const each = { ...everywhere, places: { ...everywhere.places!, experts: "per-expert" as const } };
    const some = placedOn(spec, few);
    for (const adapter of [some, everywhere, each]) await train(open(), spec, adapter, "dense");
    for (const format of formats.filter((name) => name !== "dense")) await train(open(), spec, some, format);
  }
  const packed = tinyExperts(2, { intermediate: 96, isMxfp4: true, files: "rows" });
  await train(open(), { ...sparseGpuFamilies["gptOss"]!, hidden: 64, experts: packed }, few, "dense", {
    expertFormat: "mxfp4",
  });
  await train(open(), newSpec({ ...MANY, experts: tinyExperts(2, { count: 256 }) }), few, "dense");
  await train(open(), newSpec({ qkNorm: true }), { rank: 4, scale: 1, targets: ["q_proj"] }, "dense");
  launchOthers(open(), aligned);
  launchFew(open());
  launchFewExperts(open());
  for (const row of found) expect(row.kinds, titleOf(row)).toContain(kind);
  return found;
}

test("each row is launched by something", async () => {
  const launched = new Set<KernelRow>();
  for (const gpu of GPUS) for (const row of await launchedBy(gpu)) launched.add(row);
  expect(ROWS.filter((row) => !launched.has(row)).map(titleOf)).toEqual([]);
});

test.each(["tma", "ptr", "f32"] as readonly Kind[])("what is compiled does not change which row is chosen: %s", (kind) => {
  const some = ROWS.map((row, i) => (i % 3 === 0 ? row : { ...row, ptx: "x" }) as KernelRow);
  const [one, other] = [new VariantSet(ROWS, kind), new VariantSet(some, kind)];
  for (const name of new Set(ROWS.filter(({ kinds }) => kinds.includes(kind)).map((row) => row.name)))
    expect(other.all(name).map(({ row }) => titleOf(row))).toEqual(one.all(name).map(({ row }) => titleOf(row)));
});

test("heads of linear attention that no row is compiled for are refused by name", () => {
  const [, compute, capability] = GPUS[0];
  for (const [keyDim, valueDim, message] of [
    [128, 64, "heads of 128 and 64"],
    [64, 64, "compiled for heads of 128, up to 32"],
  ] as const)
    expect(() =>
      launchLinear(new DryGpu(compute, capability, ROWS, () => undefined), {
        heads: { keyHeads: 2, valueHeads: 4, keyDim, valueDim },
        layers: [],
      }),
    ).toThrow(message);
});

test("heads of Mamba layers that no row is compiled for are refused by name", () => {
  const of = (headDim: number, stateDim: number) => () => {
    const mamba = { ...sparseGpuFamilies["granite_h"]!.mamba!, heads: { heads: 8, headDim, groups: 2, stateDim } };
    launchSpace(new DryGpu("bf16", { major: 9, minor: 0 }, ROWS, () => undefined), mamba);
  };
  expect(of(136, 128)).toThrow(
    "heads of 136 and states of 128; in bf16 on this GPU they were compiled for 64 and 128, up to 128",
  );
  expect(of(64, 264)).toThrow(expect.objectContaining({ code: "device.heads" }));
  expect(of(36, 128)).toThrow("multiples of 8");
  of(24, 12)();
});

test("a row that was not compiled is refused by name, with the way out", () => {
  const row = ROWS.find(({ name }) => name === "swiglu_forward")!;
  expect(() => compiled(row)).toThrow("without swiglu_forward bf16 sm_80 BLOCK=1024");
  expect(() => compiled(row)).toThrow(
    expect.objectContaining({ code: "cuda.kernels", hint: expect.stringContaining("scripts/kernels") }),
  );
});

test.each(Object.entries({ ...gpuFamilies, ...sparseGpuFamilies }))(
  "random weights of %s are made, those that are f32 on every device, too",
  async (_, spec) => {
    const gpu = new DryGpu("bf16", { major: 9, minor: 0 }, ROWS, () => undefined);
    using source = weightsOf({ randomSeed: 1 }, spec, gpu);
    const sizes = tinySizes(gpu, spec, [], { layers: spec.layers, slots: 1 });
    const config = { spec, layerRange: wholeModel(spec), sizes };
    using stage = await Stage.open(gpu, config, source.fill, { previous: null, next: null });
    expect(stage.config.spec).toBe(spec);
  },
);
